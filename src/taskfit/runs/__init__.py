"""One run: prepare, fit, measure, predict, its folder."""
