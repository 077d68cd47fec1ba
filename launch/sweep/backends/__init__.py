"""The backends that run the cells of a sweep: a module each, with check, start and cancel."""
