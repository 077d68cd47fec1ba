"""Foreign checkpoints in and out: the tables that map tensors, and what reads them."""
