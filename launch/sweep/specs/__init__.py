"""Ready specs: `melllm sweep run scaling --workdir DIR`; copy one to change its first lines."""
