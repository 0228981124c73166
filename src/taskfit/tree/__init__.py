"""The token tree: every distinct prefix once, in one row of tokens. Pure arrays, no models."""

from taskfit.tree.build import IntArray, TokenTree, common_prefix_length
from taskfit.tree.layout import AttentionBlock, attention_blocks
from taskfit.tree.plan import plan_trees, tokens_to_run, unique_tokens
from taskfit.tree.segments import CALL_TOKENS, Segments, cut_at_branches

__all__ = [
    "CALL_TOKENS",
    "AttentionBlock",
    "IntArray",
    "Segments",
    "TokenTree",
    "attention_blocks",
    "common_prefix_length",
    "cut_at_branches",
    "plan_trees",
    "tokens_to_run",
    "unique_tokens",
]
