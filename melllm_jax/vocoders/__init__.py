"""Mel to sound: the networks, and Griffin-Lim for who has none."""
