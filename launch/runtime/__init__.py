"""The process, its peers and its environment."""
