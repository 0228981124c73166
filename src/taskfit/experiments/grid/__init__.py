"""Grids of runs: methods x sample sizes x draws x models."""
