"""`melllm sweep X` is commands/sweep/X.py."""
