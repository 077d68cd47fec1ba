"""The page behind `melllm sweep report`."""
