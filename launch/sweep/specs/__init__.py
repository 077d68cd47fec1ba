"""Ready specs: `melllm sweep run scaling --workdir DIR`; copy one to change its first lines.

A spec is found by its file's stem in whatever folder it lies, so that no two share one.
"""
