"""Text out of a model: prefill, cached generation, sampling."""
