"""Fit a pretrained language model to a text task, and measure it."""
