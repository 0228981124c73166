"""From an answer to log-probabilities over labels.

Legend: L labels.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taskfit.remote.chat import Answer

FloatArray = NDArray[np.float64]

# What all labels share when a label is read from the text alone: a wrong one costs a finite
# log-loss, 6.9 nats with one other label.
PARSED_EPSILON = 1e-3
# The most a list of top log-probabilities is trusted to leave nothing over.
SMALLEST_REST = 1e-10


def label_scores(answer: Answer, words_by_label: Sequence[Sequence[str]]) -> FloatArray | None:
    """Return log-probabilities over the labels, (L,), or None where the answer names none of them.

    From the top log-probabilities where there are some: a token counts for a label if one of the
    label's words starts with it and no word of another label does (surrounding white space and
    case aside), and the tokens of a label add up. A label without a listed token gets half of the
    most that it can have: the probability of the least listed token, or what the list leaves over,
    whichever is less.

    Otherwise, and where ambiguous tokens weigh more than those that count, from the text: the
    label whose word stands in it as a whole word (case aside; of words at the same place the
    longest), if that is exactly one label. It gets 1 - e + e / L, the others e / L, with
    e = `PARSED_EPSILON`. Negation is not understood.

    Args:
        answer: The answer to one request.
        words_by_label: For each of the L labels its words.
    """
    words = [{word.strip().casefold() for word in words} - {""} for words in words_by_label]
    scores = _from_tokens(answer.top_log_probs, words) if answer.top_log_probs else None
    return scores if scores is not None else _from_text(answer.text, words)


def _from_tokens(
    top_log_probs: Mapping[str, float], words: Sequence[set[str]]
) -> FloatArray | None:
    scores = np.full(len(words), -np.inf)
    ambiguous = -math.inf
    for token, log_prob in top_log_probs.items():
        start = token.strip().casefold()
        labels = [i for i, own in enumerate(words) if any(word.startswith(start) for word in own)]
        if not start or not labels:
            continue
        if len(labels) == 1:
            scores[labels[0]] = np.logaddexp(scores[labels[0]], log_prob)
        else:
            ambiguous = float(np.logaddexp(ambiguous, log_prob))
    total = float(np.logaddexp.reduce(scores))
    if total == -math.inf or ambiguous > total:
        return None
    listed = list(top_log_probs.values())
    rest = max(1.0 - math.fsum(map(math.exp, listed)), SMALLEST_REST)
    scores[np.isneginf(scores)] = min(*listed, math.log(rest), 0.0) - math.log(2.0)
    normalized: FloatArray = scores - np.logaddexp.reduce(scores)
    return normalized


def _from_text(text: str, words: Sequence[set[str]]) -> FloatArray | None:
    # Longest first: `not acceptable` is not also `acceptable`.
    choices = "|".join(map(re.escape, sorted(set().union(*words), key=len, reverse=True)))
    found = set(re.findall(rf"(?<!\w)(?:{choices})(?!\w)", text.casefold())) if choices else set()
    labels = [label for label, own in enumerate(words) if own & found]
    if len(labels) != 1:
        return None
    probabilities = np.full(len(words), PARSED_EPSILON / len(words))
    probabilities[labels[0]] += 1.0 - PARSED_EPSILON
    scores: FloatArray = np.log(probabilities)
    return scores
