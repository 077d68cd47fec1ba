"""Figures of this machine, behind `melllm bench`."""
