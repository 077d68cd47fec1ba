"""The figures and the page behind `melllm data inspect`."""
