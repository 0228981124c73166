"""The token tree: every distinct prefix once, in one row of tokens. Pure arrays, no models."""

from taskfit.tree.build import IntArray, TokenTree, common_prefix_length
from taskfit.tree.layout import AttentionBlock, attention_blocks
from taskfit.tree.plan import plan_trees, tokens_to_run, unique_tokens

__all__ = [
    "AttentionBlock",
    "IntArray",
    "TokenTree",
    "attention_blocks",
    "common_prefix_length",
    "plan_trees",
    "tokens_to_run",
    "unique_tokens",
]
