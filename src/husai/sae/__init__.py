"""Dictionaries: one architecture a file, many seeds in one stacked tensor, one training loop."""
