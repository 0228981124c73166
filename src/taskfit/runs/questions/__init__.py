"""Several questions about one text: fit, evaluate, predict."""
