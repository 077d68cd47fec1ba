"""The commands, and the only place where data and model meet."""
