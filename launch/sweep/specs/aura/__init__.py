"""AuRA on two cores: what distillation from Whisper tiny.en does to SmolLM2-135M."""
