"""Named runs: each preset's docstring states its cost, its result and its command."""
