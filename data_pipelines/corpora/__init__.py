"""Corpora on disk, read at random: shards, manifests, Parquet, TFDS."""
