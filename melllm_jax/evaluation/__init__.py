"""Scores: word error rate, and the loss on held-out batches."""
