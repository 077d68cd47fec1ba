"""Scores of generated speech: what a judge hears, how it sounds, and how it fails."""
