"""Corpora to shards: tasks, staging, publishing, and the Beam pipeline around them."""
