"""Choose settings and wordings on the validation set."""
