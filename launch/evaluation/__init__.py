"""Scores of a checkpoint, and parity with the original that it came from."""
