"""Corpora that ask about sound, as manifests with an instruction, an answer and options."""
