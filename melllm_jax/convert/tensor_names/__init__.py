"""Foreign tensor names: one file a family of models, each read both ways."""
