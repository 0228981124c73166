"""Calibration of in-context scores by a prior over the labels, fixed before prediction.

All three kinds are one operation, dividing the label probabilities by a prior and normalising
again; they differ in where the prior is measured. It is measured once and stored with the run, so
a prediction never depends on which other texts stand in the same batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.scoring import LabelScorer
from taskfit.tasks import PromptEncoder

CONTENT_FREE = ("N/A", "[MASK]", "")

FloatArray = NDArray[np.float64]


def apply_prior(
    log_probs: FloatArray, log_prior: FloatArray | None, *, num_labels: Sequence[int] = ()
) -> FloatArray:
    """Return label probabilities from joint log-probabilities.

    Args:
        log_probs: log p(label words | prompt), (N, L).
        log_prior: Logarithm of the prior to divide by, (L,), or None.
        num_labels: Of several questions, how many of the labels each has, in order.

    Returns:
        Probabilities over the labels, rows sum to 1 for each question, (N, L).
    """
    scores = log_probs if log_prior is None else log_probs - log_prior
    parts = np.split(scores, np.cumsum(num_labels)[:-1].astype(int), axis=1)
    return np.concatenate([np.exp(log_softmax(part, axis=1)) for part in parts], axis=1)


def content_free_prior(scorer: LabelScorer) -> FloatArray:
    """Return the log of the mean label distribution over content-free inputs, (L,).

    Contextual calibration, Zhao et al. 2021 (arXiv:2102.09690), section 4, with its three inputs.
    """
    distributions = log_softmax(scorer.log_probs(scorer.encoder.empty(CONTENT_FREE)), axis=1)
    return logsumexp(distributions, axis=0) - np.log(len(CONTENT_FREE))  # type: ignore[no-any-return]


def domain_prior(scorer: LabelScorer) -> FloatArray:
    """Return the log-probability of each label after the line without any text, (L,).

    Domain-conditional PMI, Holtzman et al. 2021 (arXiv:2104.08315), equation 3: the prompt is what
    the line writes between text and label, without instruction and demonstrations.
    """
    first, *others = (_domain(encoder) for encoder in (scorer.encoder, *scorer.orders[0]))
    bare = LabelScorer(
        scorer.model, first, length_normalization=scorer.length_normalization, orders=[others]
    )
    return np.asarray(bare.log_probs(first.empty([""]))[0])


def _domain(encoder: PromptEncoder) -> PromptEncoder:
    template = replace(encoder.task.template, instruction="")
    return encoder.for_task(replace(encoder.task, template=template), demonstrations=[])


def text_prior(
    score: Callable[[Sequence[Example]], FloatArray], texts: Sequence[Example]
) -> FloatArray:
    """Return the mean log-probability of each label over texts, labels unseen, (L,).

    Batch calibration, Zhou et al. 2023 (arXiv:2309.17249), equation 3, in log space.

    Args:
        score: Returns log p(label words | prompt), (N, L).
        texts: What to average over.

    Raises:
        DataError: If there is none.
    """
    if not texts:
        raise DataError(
            "method.calibration=batch needs training texts (their labels are not used). Give "
            "a table, or use another method.calibration."
        )
    return log_softmax(score(texts), axis=1).mean(axis=0)  # type: ignore[no-any-return]
