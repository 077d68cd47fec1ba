"""Foreign corpora to rows of the one manifest: a file a format."""
