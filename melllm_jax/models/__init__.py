"""Whole networks, and their weights by name."""
