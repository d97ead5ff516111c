"""Architectures of source models, named as the keys of their published weights, and the normalisation before them."""
