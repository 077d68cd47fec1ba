"""A spoken corpus made from a grammar and espeak-ng."""
