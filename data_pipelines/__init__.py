"""Audio and text on disk to `Batch`: NumPy and Grain, never JAX."""
