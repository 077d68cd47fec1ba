"""The Grain chain from corpora to batches, resumable to the example."""
