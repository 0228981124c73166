"""What a tuned model is worth: perplexity of held-out answers, preferences, texts that it writes.

Legend: N rows or pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskfit.methods.dpo import dpo_loss
from taskfit.methods.sft import Reference
from taskfit.runs.tuning.model import TunedModel
from taskfit.screen import Screen
from taskfit.stats.bootstrap import percentile_interval, resample
from taskfit.tasks.chat import EncodedPreference, EncodedText
from taskfit.training.distributed import divided


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """Learned tokens of held-out rows.

    Attributes:
        num_rows: Rows.
        num_tokens: Learned tokens.
        loss: Mean loss of a token (nats).
        perplexity: Its exponential.
        loss_low, loss_high: 95 % interval of the loss over rows.
    """

    num_rows: int
    num_tokens: int
    loss: float
    perplexity: float
    loss_low: float
    loss_high: float


@dataclass(frozen=True, slots=True)
class PreferenceMetrics:
    """Held-out pairs of answers.

    Attributes:
        num_rows: Pairs.
        loss: Mean loss of a pair, the paper's equation 7 (nats).
        reward_accuracy: Share of pairs whose better answer has the higher reward; a draw is half.
        reward_margin: Mean difference of the rewards.
        accuracy: Share of pairs whose better answer is the more probable one by the token.
        loss_low, loss_high: 95 % interval of the loss over pairs.
    """

    num_rows: int
    loss: float
    reward_accuracy: float
    reward_margin: float
    accuracy: float
    loss_low: float
    loss_high: float


Metrics = TextMetrics | PreferenceMetrics


def measure(
    tuned: TunedModel,
    items: Sequence[EncodedText] | Sequence[EncodedPreference],
    *,
    reference: Reference,
    policy: Reference | None = None,
    label: str,
    screen: Screen,
) -> Metrics:
    """Measure a set of encoded rows.

    Args:
        tuned: The model.
        items: Rows of one kind.
        reference: What the model before training says of each pair; empty for other rows.
        policy: What the model says of each pair; None: it is asked.
        label: What progress shows.
        screen: Where progress is shown.
    """
    pairs = [item for item in items if isinstance(item, EncodedPreference)]
    texts = [item for item in items if isinstance(item, EncodedText)]
    if not pairs:

        def score(part: Sequence[EncodedText]) -> NDArray[np.float64]:
            with screen.progress(label, len(part)) as advance:
                return tuned.log_probs(part, advance=advance)[:, None]

        return _text_metrics(texts, divided(score, texts)[:, 0])
    policy = policy or pair_log_probs(tuned, pairs, label=label, screen=screen)
    return _preference_metrics(pairs, policy, reference, beta=tuned.settings.tuning.beta)


def pair_log_probs(
    tuned: TunedModel, pairs: Sequence[EncodedPreference], *, label: str, screen: Screen
) -> dict[str, tuple[float, float]]:
    """Return the log-probability of the chosen and the rejected answer, by the pair's id."""

    def score(part: Sequence[EncodedPreference]) -> NDArray[np.float64]:
        answers = [answer for pair in part for answer in (pair.chosen, pair.rejected)]
        with screen.progress(label, len(answers)) as advance:
            return tuned.log_probs(answers, advance=advance).reshape(-1, 2)

    found = divided(score, pairs)
    return {pair.id: (float(c), float(r)) for pair, (c, r) in zip(pairs, found, strict=True)}


def to_plain(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, Any]]:
    """Return plain JSON types, by set."""
    return {name: asdict(found) for name, found in metrics.items()}


def _text_metrics(texts: Sequence[EncodedText], log_probs: NDArray[np.float64]) -> TextMetrics:
    counts = np.array([text.num_learned for text in texts], dtype=np.float64)
    loss = float(-log_probs.sum() / counts.sum())
    low, high = _interval(-log_probs, counts)
    return TextMetrics(len(texts), int(counts.sum()), loss, math.exp(min(loss, 700.0)), low, high)


def _preference_metrics(
    pairs: Sequence[EncodedPreference],
    policy: Reference,
    reference: Reference,
    *,
    beta: float,
) -> PreferenceMetrics:
    ours = torch.tensor([policy[pair.id] for pair in pairs], dtype=torch.float64)
    theirs = torch.tensor([reference[pair.id] for pair in pairs], dtype=torch.float64)
    losses = dpo_loss(ours, theirs, beta=beta).numpy()
    rewards = beta * (ours - theirs)
    margins = (rewards[:, 0] - rewards[:, 1]).numpy()
    lengths = torch.tensor([[p.chosen.num_learned, p.rejected.num_learned] for p in pairs])
    per_token = ours / lengths
    low, high = _interval(losses, np.ones(len(losses)))
    return PreferenceMetrics(
        num_rows=len(pairs),
        loss=float(losses.mean()),
        reward_accuracy=float(np.heaviside(margins, 0.5).mean()),
        reward_margin=float(margins.mean()),
        accuracy=float((per_token[:, 0] > per_token[:, 1]).double().mean()),
        loss_low=low,
        loss_high=high,
    )


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval of sum(sums) / sum(counts) over resampled rows."""

    def means(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))

    return percentile_interval(resample(means, len(sums), np.random.default_rng(0)))
