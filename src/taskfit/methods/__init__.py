"""The methods of adaptation: what to encode, what to sum as loss, how to score."""

from taskfit.methods.calibration import apply_prior, content_free_prior, text_prior
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.method import Method, MethodContext, MethodState, TrainedMethod
from taskfit.methods.objective import Item, Objective
from taskfit.methods.scoring import LabelScorer, candidate_log_probs

__all__ = [
    "Item",
    "LabelScorer",
    "LabelWordLoss",
    "Method",
    "MethodContext",
    "MethodState",
    "Objective",
    "TrainedMethod",
    "apply_prior",
    "candidate_log_probs",
    "content_free_prior",
    "text_prior",
]
