"""Where the cells of a sweep run: a module a backend, each with the same four functions."""
