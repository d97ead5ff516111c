"""Readers of the layouts in which image data sets are published: each turns files into uint8 arrays and classes."""
