"""What a run learns: the network it builds and the loss of a batch."""
