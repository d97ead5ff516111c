"""Synthetic tasks whose optimum is known."""
