"""What an audit looks for, one function a kind of finding.

Legend: N examples, L labels, D width of the encoder.
"""

import importlib.util
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from taskfit.curate.filters import count_spoilt
from taskfit.data import Example
from taskfit.data.label_cells import SEVERAL
from taskfit.data.overlap import text_key
from taskfit.data.visible import look, visible
from taskfit.labels.audit_findings import Finding, found_in, text_of_example
from taskfit.labels.audit_folds import MIN_CLASS
from taskfit.stats.confident import find_label_issues
from taskfit.tasks import PromptEncoder, Task
from taskfit.tasks.control_tokens import ControlTokens

FloatArray = NDArray[np.float64]
Vectors = NDArray[np.float32]
Groups = NDArray[np.int64]
# Names that stand for a missing value as often as for a class.
MISSING = frozenset(("n/a", "na", "nan", "null", "nil", "-", "--", "?", "tbd", "todo", "#n/a"))
# Labels shorter than this differ by one letter because they are different words.
LEAST_LETTERS = 5
BETWEEN = re.compile(r"[\s_\-./]+")


def label_errors(
    examples: Sequence[Example], task: Task, probabilities: FloatArray
) -> tuple[list[Finding], list[list[int]]]:
    """Return suspected label errors, the worst first, and the joint of given and true labels.

    Rows without an answer, and labels of too few texts, are not judged. Of several labels a text
    each is judged by itself, and the row is suspected where one of them is; the joint is empty.
    """
    if task.multi_label:
        return _errors_of_several(examples, task, probabilities), []
    names = list(task.label_names)
    places = {name: place for place, name in enumerate(names)}
    given = np.array([places[str(example.label)] for example in examples])
    judged = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    issues = find_label_issues(given[judged], probabilities[judged])
    small = np.bincount(given, minlength=len(names)) < MIN_CLASS
    found = []
    for row in issues.ranked:
        place, suggested = judged[row], int(issues.suggested[row])
        if small[given[place]]:
            continue
        found.append(
            replace(
                found_in(examples[place], "label error"),
                suggested=names[suggested],
                probability=float(issues.score[row]),
                suggested_probability=float(probabilities[place, suggested]),
            )
        )
    return found, issues.joint.tolist()


def _errors_of_several(
    examples: Sequence[Example], task: Task, probabilities: FloatArray
) -> list[Finding]:
    names = list(task.label_names)
    wrong: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for place, name in enumerate(names):
        given = np.array([int(name in example.labels) for example in examples])
        if min(given.sum(), len(given) - given.sum()) < MIN_CLASS:
            continue
        present = probabilities[:, place]
        issues = find_label_issues(given, np.stack((1 - present, present), axis=1))
        for row in issues.ranked:
            wrong[int(row)].append((place, float(issues.score[row])))
    found = []
    for row, labels in sorted(wrong.items(), key=lambda one: min(p for _, p in one[1])):
        example = examples[row]
        changed = [names[place] for place, _ in labels]
        kept = set(example.labels).symmetric_difference(changed)
        told = [f"{'not' if name in example.labels else 'also'} {name}" for name in changed]
        probability = min(p for _, p in labels)
        found.append(
            replace(
                found_in(example, "label error", note=", ".join(told)),
                suggested=SEVERAL.join(name for name in names if name in kept),
                probability=probability,
                suggested_probability=1 - probability,
            )
        )
    return found


def groups_of_copies(
    examples: Sequence[Example], vectors: Vectors | None, threshold: float
) -> Groups:
    """Return the group of each text: those that are the same, or near where vectors are given.

    Args:
        examples: The texts.
        vectors: Their embeddings, of length 1, (N, D).
        threshold: Cosine from which two are near.

    Returns:
        Place of the first text of each group, (N,).
    """
    first: dict[tuple[str, ...], int] = {}
    same = np.array([first.setdefault(text_key(e), i) for i, e in enumerate(examples)])
    if vectors is None:
        return same
    from taskfit.curate.duplicates import near_by_cosine

    distinct = np.unique(same)
    found = near_by_cosine(np.ascontiguousarray(vectors[distinct]), threshold=threshold)
    kept = np.where(found.kept_row < 0, np.arange(len(distinct)), found.kept_row)
    root = dict(zip(distinct.tolist(), distinct[kept].tolist(), strict=True))
    return np.array([root[one] for one in same.tolist()])


def conflicting_copies(
    examples: Sequence[Example], groups: Groups, task: Task, probabilities: FloatArray
) -> list[Finding]:
    """Return the rows of groups of copies that have different labels, a group after the other."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    names = list(task.label_names)
    found = []
    for rows in members.values():
        counts = Counter(str(examples[row].label) for row in rows)
        if len(counts) < 2:
            continue
        best = [label for label, count in counts.items() if count == max(counts.values())]
        if len(best) > 1:
            mean = np.nan_to_num(probabilities[rows]).mean(axis=0)  # (L,)

            def probability(label: str, mean: FloatArray = mean) -> float:
                if not task.multi_label:
                    return float(mean[names.index(label)])
                own = np.isin(names, label.split(SEVERAL))
                return float(np.where(own, mean, 1 - mean).prod())

            best = [max(best, key=probability)]
        exact = len({text_key(examples[row]) for row in rows}) == 1
        note = "the same text" if exact else "nearly the same text"
        for row in rows:
            example = examples[row]
            own = names.index(str(example.label)) if not task.multi_label else None
            found.append(
                replace(
                    found_in(example, "conflicting copies", note=note),
                    suggested="" if example.label == best[0] else best[0],
                    probability=None if own is None else float(probabilities[row, own]),
                    related=[examples[other].id for other in rows if other != row],
                )
            )
    return found


def in_evaluations(
    examples: Sequence[Example],
    evaluations: Mapping[str, Sequence[Example]],
    vectors: Mapping[str, Vectors],
    threshold: float,
) -> list[Finding]:
    """Return training rows whose text, or one near to it, stands in an evaluation set.

    Args:
        examples: Of the training table.
        evaluations: Evaluation sets by name.
        vectors: Embeddings of the training texts under "", and of each set; empty: only texts that
            are the same are found.
        threshold: Cosine from which two texts are near.
    """
    found = []
    for name, others in evaluations.items():
        first: dict[tuple[str, ...], int] = {}
        for place, other in enumerate(others):
            first.setdefault(text_key(other), place)
        near: dict[int, tuple[int, float]] = {}
        if vectors and others:
            from taskfit.curate.duplicates import nearest_by_cosine

            nearest, cosines = nearest_by_cosine(vectors[""], vectors[name])
            rows = np.flatnonzero(cosines >= threshold)
            near = {int(row): (int(nearest[row]), float(cosines[row])) for row in rows}
        for row, example in enumerate(examples):
            place, cosine = near.get(row, (-1, 0.0))
            exact = first.get(text_key(example))
            if exact is not None:
                place, how = exact, "the same text"
            elif place >= 0:
                how = f"nearly the same text (cosine {cosine:.3f})"
            else:
                continue
            other = others[place]
            label = "" if other.label in (None, example.label) else f", labelled {other.label!r}"
            note = f"{how} stands in {name}{label}"
            found.append(replace(found_in(example, "in evaluation", note=note), related=[other.id]))
    return found


def spoilt_texts(examples: Sequence[Example]) -> list[Finding]:
    """Return rows with characters of a wrong encoding, those with most first."""
    counted = [(count_spoilt(text_of_example(example)), example) for example in examples]
    counted.sort(key=lambda pair: -pair[0])
    return [
        found_in(example, "spoilt characters", note=f"{count} of them")
        for count, example in counted
        if count
    ]


def similar_labels(examples: Sequence[Example]) -> list[Finding]:
    """Return labels that look like a more frequent one, and names of missing values."""
    counts = Counter(name for example in examples for name in example.labels)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    found = []
    for place, name in enumerate(ordered):
        like = next((other for other in ordered[:place] if _alike(name, other)), None)
        if like is not None:
            note = f"{counts[name]:,} rows; {visible(like)} has {counts[like]:,}"
            found.append(Finding("similar labels", name, suggested=like, note=note))
        elif name.casefold() in MISSING:
            note = f"{counts[name]:,} rows; is it a class, or a label that is missing?"
            found.append(Finding("similar labels", name, note=note))
    return found


def _alike(first: str, second: str) -> bool:
    """Whether two labels differ in case, spacing, a plural, or one letter of a longer word."""
    one, other = (BETWEEN.sub("", look(name)) for name in (first, second))
    if one == other or one.removesuffix("s") == other.removesuffix("s"):
        return True
    if min(len(one), len(other)) < LEAST_LETTERS or abs(len(one) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    start = min(len(one), len(other)) if start is None else start
    rest, others = one[start:], other[start:]
    changed = rest[:1] + others[:1]
    # Class 1 and class 2 are two, and so are a and b at a name's end.
    if any(c.isdigit() for c in changed) or max(len(rest), len(others)) < 2:
        return False
    return rest[1:] == others[1:] or rest[1:] == others or rest == others[1:]


def small_classes(examples: Sequence[Example], task: Task) -> list[Finding]:
    """Return labels with too few texts, the smallest first."""
    counts = Counter(name for example in examples for name in example.labels)
    few = sorted((counts[name], name) for name in task.label_names if counts[name] < MIN_CLASS)
    return [
        Finding("small class", name, note=f"{count} texts; {MIN_CLASS} are the least")
        for count, name in few
    ]


def token_findings(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[Finding]:
    """Return control tokens in texts, texts that are too long, and label words that collide.

    Args:
        examples: Rows with labels.
        task: Their task.
        tokenizer: Of the model that will be fitted.
        limit: Longest prompt with its answer (tokens).
    """
    control = ControlTokens(tokenizer.backend_tokenizer)
    found = [
        found_in(example, "control tokens", note=" ".join(names))
        for example, (_, names) in zip(examples, control.held_by(examples), strict=True)
        if names
    ]
    encoder = PromptEncoder(tokenizer, task, [], max_length=limit)
    (shown,) = encoder.encode(examples[:1])
    room = limit - shown.num_tokens - shown.num_tokens_cut
    # A token is a byte or more of text, so most texts need not be looked at.
    long = [e for e in examples if len(text_of_example(e).encode()) > room]
    cut = [(item.num_tokens_cut, e) for item, e in zip(encoder.encode(long), long, strict=True)]
    found += [
        found_in(example, "too long", note=f"{count:,} tokens over {limit:,}")
        for count, example in sorted(cut, key=lambda pair: -pair[0])
        if count
    ]
    owners = {c.word: task.label_names[c.label_index] for c in encoder.candidates}
    found += [
        Finding(
            "label words", owners[short], note=f"the tokens of {short!r} start those of {word!r}"
        )
        for short, word in encoder.word_starts
    ]
    return found


def has_neighbours() -> bool:
    """Return whether near copies can be looked for; see the extra `curate`."""
    return importlib.util.find_spec("faiss") is not None
