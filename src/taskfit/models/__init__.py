"""Load causal language models, put adapters on them, and run them over token trees."""
