"""Sound files and signal processing, in NumPy."""
