"""Load causal language models, put adapters on them, and run them over token trees."""

from taskfit.models.packaged import packaged_folder

__all__ = ["packaged_folder"]
