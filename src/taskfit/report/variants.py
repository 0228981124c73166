"""Which runs of a comparison belong together, and what they cost.

A method variant is a method with its model and settings, at every size and draw it was run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taskfit.report.finished_run import FinishedRun
from taskfit.report.words import shorten
from taskfit.stats import Evaluation

VALUE_CHARACTERS = 24  # of a setting's value in a name
MAJORITY, TFIDF, REMOTE = "majority", "tfidf", "remote"
COSTS = ("train_seconds", "memory_bytes", "latency_seconds")


@dataclass(frozen=True, eq=False)
class MethodVariant:
    """A method with its model and settings.

    Attributes:
        name: How tables and figures call it; no two variants have the same.
        runs: Its finished runs, by size and draw, one of each; one that repeats another with the
            same answers is left out.
    """

    name: str
    runs: list[FinishedRun]

    @cached_property
    def sizes(self) -> list[int]:
        """Return its numbers of labels in rising order; 0 where it sees none."""
        return sorted({run.size for run in self.runs})

    @property
    def method(self) -> str:
        """Return the method, whatever the user calls it."""
        return self.runs[0].result.method

    @property
    def model(self) -> str:
        """Return its model."""
        return self.runs[0].result.model

    @property
    def sees_labels(self) -> bool:
        """Return whether any of its runs sees a label."""
        return self.sizes != [0]

    def at(self, size: int, evaluation: str) -> "Contender | None":
        """Return its runs of a size that were measured on an evaluation set; None without any.

        Where it sees no labels it is the same at every size.
        """
        own = size if self.sees_labels else 0
        runs = {
            run.seed: run
            for run in self.runs
            if run.size == own and evaluation in run.result.evaluations
        }
        return Contender(self, own, runs) if runs else None


@dataclass(frozen=True, eq=False)
class Contender:
    """A method variant at one number of labels.

    Attributes:
        variant: All sizes of it.
        size: Labelled examples; 0 if it sees none.
        runs: Draw -> run.
    """

    variant: MethodVariant
    size: int
    runs: dict[int, FinishedRun]

    @property
    def name(self) -> str:
        """Return the variant's name."""
        return self.variant.name

    @cached_property
    def first(self) -> FinishedRun:
        """Return the run of the lowest draw."""
        return self.runs[min(self.runs)]

    @property
    def kind(self) -> str:
        """Return the method, whatever the user calls it."""
        return self.variant.method

    @cached_property
    def language_model(self) -> str | None:
        """Return the language model it reads; None where it reads none."""
        settings = self.first.settings.method
        reads = settings.reads_model
        return self.first.result.model if reads or self.kind == REMOTE else None

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """Return its costs by name: fewest seconds, most memory, lowest latency; None: unknown.

        Other programs only ever make a run slower, so its fastest draw says best what it takes. A
        remote model's memory is not this machine's, so it is unknown.
        """
        results = [run.result for run in self.runs.values()]
        latencies = [r.latency_seconds for r in results if r.latency_seconds is not None]
        memory = max(r.peak_memory_bytes for r in results)
        return {
            "train_seconds": min(r.whole_seconds for r in results),
            "memory_bytes": None if self.kind == REMOTE else float(memory),
            "latency_seconds": min(latencies, default=None),
        }

    @cached_property
    def order(self) -> tuple[object, ...]:
        """Return a key that sorts contenders from cheap to expensive, whatever their names."""
        costs = [value if value is not None else np.inf for value in self.costs.values()]
        return (self.kind != MAJORITY, *costs, self.size, self.kind, self.name)


def variants_of(runs: Sequence[FinishedRun]) -> list[MethodVariant]:
    """Return the method variants of a comparison, in the order of its runs.

    Runs of one name and model that differ in more than size and draw are variants of their own,
    named after the settings that set them apart.
    """
    grouped: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        grouped.setdefault((run.name, run.result.model), []).append(run)
    variants: dict[str, MethodVariant] = {}
    for (name, model), own in grouped.items():
        several = sum(other == name for other, _ in grouped) > 1
        base = f"{name} ({model.rstrip('/').rsplit('/', 1)[-1]})" if several else name
        for settings, kept in _split_by_settings(own).items():
            full = f"{base} [{settings}]" if settings else base
            unique, count = full, 2
            while unique in variants:
                unique, count = f"{full} #{count}", count + 1
            ordered = sorted(kept, key=lambda run: (run.size, run.seed))
            variants[unique] = MethodVariant(unique, ordered)
    return list(variants.values())


def _split_by_settings(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Split runs of one name and model so that a size and draw stands once in each part.

    What repeats another run of its size and draw is left out.
    """
    slots: dict[tuple[int, int], list[FinishedRun]] = {}
    kept: list[FinishedRun] = []
    for run in runs:
        slot = slots.setdefault((run.size, run.seed), [])
        if not any(_same_scores(run, other) for other in slot):
            slot.append(run)
            kept.append(run)
    if len(slots) == len(kept):
        return {"": kept}
    keys = sorted({key for slot in slots.values() for key in _varied_settings(slot)})
    parts: dict[str, list[FinishedRun]] = {}
    for run in kept:
        label = ", ".join(
            f"{key.rsplit('.', 1)[-1]}={shorten(str(run.flat_settings.get(key)), VALUE_CHARACTERS)}"
            for key in keys
        )
        taken = any((r.size, r.seed) == (run.size, run.seed) for r in parts.get(label, []))
        # Equal settings with different answers: two machines, or a file that changed.
        parts.setdefault(f"{label} {run.folder.name}".strip() if taken else label, []).append(run)
    return parts


def _varied_settings(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the settings of all runs in which they differ, but for size and draw."""
    first = runs[0].flat_settings
    return [
        key
        for key in first
        if key not in ("seed", "data.num_train")
        and all(key in run.flat_settings for run in runs)
        and any(run.flat_settings[key] != first[key] for run in runs)
    ]


def _same_scores(one: FinishedRun, other: FinishedRun) -> bool:
    def key(evaluation: Evaluation) -> tuple[object, ...]:
        # Rounding differs with how texts were packed into passes.
        return (evaluation.confusion_matrix, evaluation.accuracy, round(evaluation.log_loss, 5))

    first, second = one.result.evaluations, other.result.evaluations
    return first.keys() == second.keys() and all(key(first[n]) == key(second[n]) for n in first)


def summary_size(variants: Iterable[MethodVariant]) -> int:
    """Return the largest size that every variant with labels has, or the one that most have."""
    sizes = [size for variant in variants for size in variant.sizes if size]
    return max(set(sizes), key=lambda size: (sizes.count(size), size), default=0)
