"""Encoder-free speech language models in JAX. Importing this package starts nothing."""

__version__ = "0.1.0"
