"""Parts that every network is made of."""
