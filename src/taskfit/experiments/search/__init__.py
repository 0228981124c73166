"""A search for settings on the validation set, before the run itself."""
