"""Blend a tuned classifier with cheap probes: a weighted mean of their probabilities.

A tuned model and regressions on frozen features err on different texts, and where labels are few
any of them may be the best. The weights come from held-out texts where there are enough of them; a
pull to equal shares keeps a handful of texts from deciding.

Legend: N examples, L labels, K parts: the tuned method, then the probes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import DataError, ModelError
from taskfit.method_settings import as_method
from taskfit.methods.method import Method, MethodContext, MethodState
from taskfit.methods.targets import target_matrix

if TYPE_CHECKING:
    from taskfit.methods.probe import Probe

FloatArray = NDArray[np.float64]

PREFIX = "blend."
# Fewer held-out texts than this say less about the weights than what held on other data.
FEWEST = 50
# Weights are multiples of a tenth.
STEPS = 10
# Of the pull to equal shares (nats): all weight on one of two parts costs half of this.
PULL = 16.0
SMALLEST = 1e-15


@dataclass(frozen=True, slots=True)
class Blend:
    """Probes whose probabilities are averaged with those of a tuned method.

    Attributes:
        probes: The fitted probes.
        weights: Shares of the mean, the tuned method's first, adding up to 1, (K,).
        num_held_out: Texts that chose the weights; 0: none did, the shares are equal.
    """

    probes: "tuple[Probe, ...]"
    weights: tuple[float, ...]
    num_held_out: int

    @property
    def cached_seconds(self) -> float:
        """Return the seconds of features that were in the cache."""
        return sum(probe.cached_seconds for probe in self.probes)

    @property
    def names(self) -> list[str]:
        """Return what tables call the probes."""
        return [_name(probe.settings.features) for probe in self.probes]

    def mean(self, parts: Sequence[FloatArray | None]) -> FloatArray:
        """Return the weighted mean of the parts' probabilities, (N, L).

        Args:
            parts: (N, L) each, in the order of the weights; None where the weight is 0.
        """
        used = [(w, part) for w, part in zip(self.weights, parts, strict=True) if w]
        total = np.zeros_like(next(part for _, part in used if part is not None))
        for weight, part in used:
            assert part is not None, "a part with a weight has no probabilities"
            total = total + weight * part
        return total

    def state(self) -> MethodState:
        """Return what is saved of it."""
        states = [probe.state() for probe in self.probes]
        values = {**self.record, "states": [dict(state.values) for state in states]}
        arrays = {
            f"{PREFIX}{place}.{name}": array
            for place, state in enumerate(states)
            for name, array in state.arrays.items()
        }
        return MethodState(values, arrays)

    @property
    def record(self) -> dict[str, Any]:
        """Return what `result.json` says of it."""
        return {
            "features": [probe.settings.features for probe in self.probes],
            "weights": list(self.weights),
            "num_held_out": self.num_held_out,
        }

    @property
    def sentence(self) -> str:
        """Return what the blend is, for people."""
        how = (
            f"chosen on {self.num_held_out:,} held-out texts"
            if self.num_held_out
            else "equal shares, as there are too few held-out texts to choose"
        )
        shares = ", ".join(
            f"{weight:.0%} the {name}"
            for weight, name in zip(self.weights, ("tuned model", *self.names), strict=True)
        )
        return f"blend: {shares} ({how})"


def _name(features: str) -> str:
    return "probe on the model" if features == "model" else f"probe on {features}"


def fit_probes(context: MethodContext, train: Sequence[Example]) -> "tuple[Probe, ...]":
    """Fit the probes that a run's settings blend with; none without training texts.

    Call it before an adapter is on the model: features are cached under the model's own weights.

    Raises:
        TaskfitError: If an encoder cannot be had.
    """
    probes = []
    for name in context.settings.method.blended if train else ():
        try:
            probe = _make_probe(context, name)
        except (DataError, ModelError) as error:
            raise type(error)(
                f"{error}\nIt is to be blended with the tuned model; --set 'method.blend=[model]' "
                "does without an encoder, 'method.blend=[]' without any probe."
            ) from error
        probe.prepare(train, ())
        probes.append(probe)
    return tuple(probes)


def make_blend(
    method: Method, probes: "Sequence[Probe]", validation: Sequence[Example]
) -> Blend | None:
    """Choose the weights of a tuned method and fitted probes; None where nothing is blended.

    Args:
        method: The tuned method.
        probes: As `fit_probes` returns them.
        validation: Held-out texts.
    """
    if not probes:
        return None
    count = 1 + len(probes)
    if len(validation) < FEWEST:
        return Blend(tuple(probes), (1 / count,) * count, 0)
    parts = [np.nan_to_num(method.probabilities(validation))]
    parts += [probe.probabilities(validation) for probe in probes]
    weights = choose_weights(parts, target_matrix(validation, method.task.label_names))
    return Blend(tuple(probes), weights, len(validation))


def restore_blend(context: MethodContext, state: MethodState) -> Blend:
    """Return a saved blend.

    Args:
        context: Of the run; with its model where a probe reads it.
        state: As `Blend.state` returned it.
    """
    values = state.values
    probes = []
    for place, (features, own) in enumerate(zip(values["features"], values["states"], strict=True)):
        probe = _make_probe(context, str(features))
        start = f"{PREFIX}{place}."
        arrays = {k.removeprefix(start): v for k, v in state.arrays.items() if k.startswith(start)}
        probe.restore(MethodState(own, arrays))
        probes.append(probe)
    weights = tuple(float(weight) for weight in values["weights"])
    return Blend(tuple(probes), weights, int(values["num_held_out"]))


def choose_weights(parts: Sequence[FloatArray], targets: FloatArray) -> tuple[float, ...]:
    """Return the shares with the least log loss on held-out texts, pulled to equal ones, (K,).

    Args:
        parts: Probabilities of each part, (N, L).
        targets: Shares of the labels; of several labels a text 0 or 1 each, (N, L).
    """
    several = bool(np.any(targets.sum(axis=1) != 1))
    stacked = np.stack(parts)  # (K, N, L)
    best, least = (1 / len(parts),) * len(parts), np.inf
    for weights in _simplex(len(parts)):
        mixed = np.clip(np.tensordot(weights, stacked, axes=1), SMALLEST, 1)
        loss = -(targets * np.log(mixed)).sum()
        if several:
            loss -= ((1 - targets) * np.log(np.clip(1 - mixed, SMALLEST, 1))).sum()
        loss += PULL * ((np.asarray(weights) - 1 / len(parts)) ** 2).sum()
        if loss < least - 1e-9:
            best, least = weights, loss
    return best


def _simplex(count: int) -> list[tuple[float, ...]]:
    """Return all shares of `count` parts that are multiples of a tenth, and the equal ones."""
    cuts = itertools.product(range(STEPS + 1), repeat=count - 1)
    found = [(STEPS - sum(cut), *cut) for cut in cuts if sum(cut) <= STEPS]
    return [(1 / count,) * count, *(tuple(part / STEPS for part in one) for one in found)]


def _make_probe(context: MethodContext, features: str) -> "Probe":
    from taskfit.methods.probe import Probe

    method = as_method(context.settings.method, "probe", features=features, blend=None)
    settings = context.settings.model_copy(update={"method": method})
    model = context.model if features == "model" else None
    return Probe(MethodContext(settings, context.task, context.demonstrations, model))
