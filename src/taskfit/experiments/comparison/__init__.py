"""Finished runs side by side: evidence, report, advice."""
