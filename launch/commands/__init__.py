"""A file a command: `melllm X` is commands/X.py."""
