"""Scaling laws: fits, intervals, predictions."""
