"""Which runs of a comparison belong together, and what they answered on the same examples.

A system is a method with its model, at every size and draw it was run. Legend: D draws,
N examples, L labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.report.evidence import Evidence, FinishedRun, FloatArray, IntArray
from taskfit.stats import Evaluation
from taskfit.stats.comparison import Comparison, compare_correct, compare_methods

VALUE_CHARACTERS = 24  # of a setting's value in a name


@dataclass(frozen=True, eq=False)
class System:
    """A method with its model.

    Attributes:
        name: How tables and figures call it; no two systems have the same.
        runs: Its finished runs, by size and draw, one of each.
        num_repeated: Runs left out, since they repeat another one with the same answers.
    """

    name: str
    runs: list[FinishedRun]
    num_repeated: int = 0

    @cached_property
    def sizes(self) -> list[int]:
        """Return its numbers of labels in rising order; 0 where it sees none."""
        return sorted({run.size for run in self.runs})

    @property
    def sees_labels(self) -> bool:
        """Return whether any of its runs sees a label."""
        return self.sizes != [0]

    def at(self, size: int) -> dict[int, FinishedRun]:
        """Return its runs of a size by draw; where it sees no labels, those it has."""
        wanted = size if self.sees_labels else 0
        return {run.seed: run for run in self.runs if run.size == wanted}


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What some runs answered on the examples that all of them saw.

    Attributes:
        ids, texts, gold: Of the examples, N; gold as a word.
        labels: L.
        gold_index: Right labels, (N,); empty where a text may have several labels.
        predicted: Answers, -1 for none, a row a run, (R, N); likewise.
        probabilities: Of labels, NaN without an answer, (R, N, L); likewise.
        correct: Whether the answer is right, (R, N).
        words: The answers as words, None for none, (R, N).
    """

    ids: list[str]
    texts: list[str]
    gold: list[str]
    labels: list[str]
    gold_index: IntArray
    predicted: IntArray
    probabilities: FloatArray
    correct: NDArray[np.bool_]
    words: NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class _RunAnswers:
    """What one run answered; see `Answers`."""

    ids: list[str]
    texts: list[str]
    gold: list[str]
    words: NDArray[np.object_]
    correct: NDArray[np.bool_]
    gold_index: IntArray
    predicted: IntArray
    probabilities: FloatArray


class AnswerStore:
    """Reads predictions once each and lays those of several runs side by side."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._read: dict[tuple[str, str], _RunAnswers] = {}

    def labels(self, evaluation: str) -> list[str]:
        """Return the labels of an evaluation set over all runs, in the order of the first."""
        found = (
            label
            for run in self._evidence.runs
            if evaluation in run.result.evaluations
            for label in run.result.evaluations[evaluation].labels
        )
        return list(dict.fromkeys(found))

    def of(self, runs: Sequence[FinishedRun], evaluation: str) -> Answers:
        """Return the answers of some runs, at least one, on the examples that all of them saw.

        Raises:
            CheckpointError: If a file of predictions is missing or cannot be read.
        """
        read = [self._one(run, evaluation) for run in runs]
        first = read[0]
        same = all(one.ids == first.ids for one in read)
        if same:
            places = [np.arange(len(first.ids))] * len(read)
        else:
            index = [{name: place for place, name in enumerate(one.ids)} for one in read]
            shared = [name for name in index[0] if all(name in one for one in index)]
            places = [np.array([one[name] for name in shared], np.int64) for one in index]
        kept = places[0]
        single = not self._evidence.multi_label
        pairs = list(zip(read, places, strict=True))
        nothing = np.empty(0, np.int64)
        return Answers(
            ids=[first.ids[i] for i in kept],
            texts=[first.texts[i] for i in kept],
            gold=[first.gold[i] for i in kept],
            labels=self.labels(evaluation),
            gold_index=first.gold_index[kept] if single else nothing,
            predicted=np.stack([one.predicted[p] for one, p in pairs]) if single else nothing,
            probabilities=np.stack([one.probabilities[p] for one, p in pairs])
            if single
            else np.empty(0),
            correct=np.stack([one.correct[p] for one, p in pairs]),
            words=np.stack([one.words[p] for one, p in pairs]),
        )

    def _one(self, run: FinishedRun, evaluation: str) -> _RunAnswers:
        key = (run.folder.name, evaluation)
        if key not in self._read:
            self._read[key] = self._read_one(run, evaluation)
        return self._read[key]

    def _read_one(self, run: FinishedRun, evaluation: str) -> _RunAnswers:
        words = run.answers(evaluation)
        gold, predicted, probabilities = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        if not self._evidence.multi_label:
            found = run.predictions(evaluation)
            order, own = self.labels(evaluation), run.result.evaluations[evaluation].labels
            # -1, no answer, is the last place and stays -1.
            place = np.array([*(order.index(label) for label in own), -1])
            gold, predicted = place[found.gold], place[found.predicted]
            unanswered = np.isnan(found.probabilities).all(axis=1, keepdims=True)
            probabilities = np.where(unanswered, np.nan, np.zeros(len(order)))
            probabilities[:, place[:-1]] = found.probabilities
        return _RunAnswers(
            ids=words["id"].tolist(),
            texts=words["text"].tolist(),
            gold=words["gold"].tolist(),
            words=words["predicted"].to_numpy(object),
            correct=words["correct"].to_numpy(bool),
            gold_index=gold,
            predicted=predicted,
            probabilities=probabilities,
        )


@dataclass(frozen=True, slots=True, eq=False)
class SizeComparison:
    """All systems of a size side by side on an evaluation set.

    Attributes:
        size: Number of labels; 0 where no system sees any.
        evaluation: Name of the evaluation set.
        draws: Draws that all these systems have.
        comparison: Scores, and differences to the best.
    """

    size: int
    evaluation: str
    draws: list[int]
    comparison: Comparison


def systems_of(evidence: Evidence) -> list[System]:
    """Return the systems of a comparison, in the order of the grid.

    Runs of one name and model that differ in more than size and draw are systems of their own,
    named after the settings that set them apart.
    """
    grouped: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in evidence.runs:
        grouped.setdefault((run.name, run.result.model), []).append(run)
    models: dict[str, set[str]] = {}
    for name, model in grouped:
        models.setdefault(name, set()).add(model)
    systems: list[System] = []
    for (name, model), runs in grouped.items():
        several = len(models[name]) > 1
        base = f"{name} ({model.rstrip('/').rsplit('/', 1)[-1]})" if several else name
        for variant, kept, repeated in _variants(runs):
            wanted = f"{base} [{variant}]" if variant else base
            taken = {system.name for system in systems}
            unique = wanted
            count = 2
            while unique in taken:
                unique, count = f"{wanted} #{count}", count + 1
            ordered = sorted(kept, key=lambda run: (run.size, run.seed))
            systems.append(System(unique, ordered, repeated))
    return systems


def flat_settings(run: FinishedRun) -> dict[str, Any]:
    """Return a run's settings as `section.key` -> value."""
    flat: dict[str, Any] = {}
    for section, values in run.settings.model_dump().items():
        if isinstance(values, Mapping):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


def _variants(runs: Sequence[FinishedRun]) -> list[tuple[str, list[FinishedRun], int]]:
    """Split runs of one name and model so that a size and draw stands once in each part."""
    kept: list[FinishedRun] = []
    slots: dict[tuple[int, int], list[FinishedRun]] = {}
    for run in runs:
        slot = slots.setdefault((run.size, run.seed), [])
        if not any(_same_scores(run, other) for other in slot):
            slot.append(run)
            kept.append(run)
    repeated = len(runs) - len(kept)
    crowded = [slot for slot in slots.values() if len(slot) > 1]
    if not crowded:
        return [("", kept, repeated)]
    keys = sorted({key for slot in crowded for key in varied(slot)})
    parts: dict[str, list[FinishedRun]] = {}
    for run in kept:
        flat = flat_settings(run)
        label = ", ".join(f"{key.rsplit('.', 1)[-1]}={_value(flat[key])}" for key in keys)
        place = [r for r in parts.get(label, []) if (r.size, r.seed) == (run.size, run.seed)]
        # Equal settings with different answers: two machines, or a file that changed.
        parts.setdefault(f"{label} {run.folder.name}" if place else label, []).append(run)
    return [
        (label.strip(), part, repeated if place == 0 else 0)
        for place, (label, part) in enumerate(parts.items())
    ]


def varied(runs: Iterable[FinishedRun]) -> list[str]:
    """Return the settings in which runs differ, but for size and draw."""
    flats = [flat_settings(run) for run in runs]
    return [
        key
        for key in flats[0]
        if key not in ("seed", "data.num_train") and any(f[key] != flats[0][key] for f in flats)
    ]


def _value(value: object) -> str:
    text = str(value)
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"


def _same_scores(one: FinishedRun, other: FinishedRun) -> bool:
    def key(evaluation: Evaluation) -> tuple[object, ...]:
        # Rounding differs with how texts were packed into passes.
        return (evaluation.confusion_matrix, evaluation.accuracy, round(evaluation.log_loss, 5))

    first, second = one.result.evaluations, other.result.evaluations
    return first.keys() == second.keys() and all(key(first[n]) == key(second[n]) for n in first)


def summary_size(systems: Sequence[System]) -> int:
    """Return the largest size that every system with labels has, or the one that most have."""
    seeing = [system for system in systems if system.sees_labels]
    counts: dict[int, int] = {}
    for system in seeing:
        for size in system.sizes:
            counts[size] = counts.get(size, 0) + (size > 0)
    return max(counts, key=lambda size: (counts[size], size), default=0)


def compare_at(
    systems: Sequence[System], size: int, evaluation: str, *, metric: str, store: AnswerStore
) -> SizeComparison | None:
    """Compare all systems that have a size on one evaluation set, over the draws they share.

    A system that sees no labels repeats its one answer. Where the systems share no draw, the draw
    that most of them have is compared.

    Returns:
        None where fewer than two examples were seen by all.
    """
    found = {system.name: _measured(system.at(size).values(), evaluation) for system in systems}
    draws = _shared_draws(systems, found)
    rows: dict[str, list[FinishedRun]] = {}
    for system in systems:
        runs = {run.seed: run for run in found[system.name]}
        if runs and not system.sees_labels:
            rows[system.name] = [runs.get(draw, found[system.name][0]) for draw in draws]
        elif draws and runs.keys() >= set(draws):
            rows[system.name] = [runs[draw] for draw in draws]
    if not rows:
        return None
    answers = store.of([run for runs in rows.values() for run in runs], evaluation)
    if len(answers.ids) < 2:
        return None
    comparison = _compare(answers, list(rows), len(draws), metric)
    return SizeComparison(size, evaluation, draws, comparison)


def score_of(
    runs: Sequence[FinishedRun], evaluation: str, *, metric: str, store: AnswerStore
) -> Comparison | None:
    """Score the draws of one system by themselves; None with fewer than two examples."""
    answers = store.of(runs, evaluation)
    return _compare(answers, ["system"], len(runs), metric) if len(answers.ids) > 1 else None


def _measured(runs: Iterable[FinishedRun], evaluation: str) -> list[FinishedRun]:
    return [run for run in runs if evaluation in run.result.evaluations]


def _shared_draws(
    systems: Sequence[System], found: Mapping[str, Sequence[FinishedRun]]
) -> list[int]:
    seeing = [system for system in systems if system.sees_labels and found[system.name]]
    draws = [{run.seed for run in found[system.name]} for system in seeing or systems]
    draws = [seeds for seeds in draws if seeds]
    if not draws:
        return []
    shared = set.intersection(*draws)
    if not shared:
        every = sorted(set.union(*draws))
        shared = {max(every, key=lambda seed: sum(seed in seeds for seeds in draws))}
    return sorted(shared)


def _compare(answers: Answers, names: Sequence[str], num_draws: int, metric: str) -> Comparison:
    shape = (len(names), num_draws, len(answers.ids))
    if not len(answers.gold_index):
        return compare_correct(answers.correct.reshape(shape), methods=names)
    predicted = answers.predicted.reshape(shape)
    return compare_methods(predicted, answers.gold_index, methods=names, metric=metric)
