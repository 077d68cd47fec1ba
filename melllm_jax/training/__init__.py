"""The update, the loop around it, and how both start and stop."""
