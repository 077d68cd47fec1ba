"""What is done with one run: train it, load it, transcribe with it."""
