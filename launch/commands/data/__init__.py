"""`melllm data X` is commands/data/X.py."""
