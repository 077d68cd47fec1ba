"""SmolLM2-135M with speech, on two cores: front ends, starts, layers, token rates."""
