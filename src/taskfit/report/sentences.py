"""The advice in words: the template's sentences for the facts, and no sentence without one.

Phrases that are listed within a sentence are written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from taskfit.report.advice_template import TEMPLATE
from taskfit.report.choice import CLOSE
from taskfit.report.variants import MAJORITY, TFIDF
from taskfit.report.words import (
    COST_NAMES,
    METRIC_NAMES,
    count,
    format_cost,
    joined,
    num,
    p_value,
    span,
)
from taskfit.stats.comparison import Difference
from taskfit.stats.learning_curve import HELPS, LITTLE

# Macros of the template and the headings over what they say.
FIRST = {
    "recommendation": "Which method",
    "baselines": "How sure",
    "missed": "Labels that it misses",
    "domains": "On other texts",
    "costs": "What it costs",
    "labels": "More labels",
    "unknown": "What this cannot know",
}
DETAILS = {
    "confidence": "When to let it answer",
    "methods": "All methods",
    "limits": "The limits",
    "domain_details": "On other texts, by set",
    "label_details": "More labels, by method",
    "calibration": "Calibration",
    "remarks": "About these runs",
}
SAVES = {
    "train_seconds": "takes less time",
    "memory_bytes": "takes less memory",
    "latency_seconds": "answers a text faster",
}
BASELINES = {MAJORITY: "the majority class", TFIDF: "TF-IDF"}


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences under a heading."""

    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.heading}\n{self.text}"


def paragraphs_of(facts: dict[str, Any]) -> tuple[list[Paragraph], list[Paragraph]]:
    """Write the advice: what to do, and details."""
    written = _template().make_module(_context(facts))
    without = {
        "baselines": not facts["recommended"],  # it stands alone
        "domains": not facts["out_of_domain"],
        "domain_details": not facts["out_of_domain"],
        "calibration": not facts["calibration"],
    }

    def paragraphs(headings: Mapping[str, str]) -> list[Paragraph]:
        texts = {n: str(getattr(written, n)()) for n in headings if not without.get(n)}
        lines = {n: [line.strip() for line in text.splitlines()] for n, text in texts.items()}
        return [
            Paragraph(headings[name], " ".join(line for line in text if line))
            for name, text in lines.items()
            if any(text)
        ]

    return paragraphs(FIRST), paragraphs(DETAILS)


@cache
def _template() -> jinja2.Template:
    """Return the template of all sentences, compiled once."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE)


def _context(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the template calls by name: facts, phrases for lists, functions."""
    choice, there = facts["choice"], facts["out_of_domain"]
    taken, contenders = choice["recommended"], choice["candidates"]
    against = {found.method: found for found in choice["against_recommended"].differences}
    costs = {c["method"]: c["train_seconds"] for c in contenders}
    first = {c["kind"]: c["method"] for c in reversed(contenders)}  # the cheapest of each kind
    baselines = {kind: against[first[kind]] for kind in BASELINES if first.get(kind) in against}
    others = [
        c["method"] for c in contenders if c["kind"] not in BASELINES and c["method"] in against
    ]
    several = "share of texts with exactly the right labels"
    verdicts: dict[str, list[str]] = {}  # at the most labels
    for name, labels in facts["labels"]["by_method"].items():
        verdicts.setdefault(labels["gains"][-1].verdict, []).append(name)
    functions = (by, count, format_cost, joined, lost, named, num, p_value, span, times_over, trust)
    return {
        **{function.__name__: function for function in functions},
        "facts": facts,
        "taken": taken,
        "choice": choice,
        "recommended": facts["recommended"],
        "majority": taken["kind"] == MAJORITY,
        "metric": several if facts["multi_label"] else METRIC_NAMES[facts["metric"]],
        "to_best": against.get(choice["best"]["method"]),
        "saves": SAVES.get(choice["saves"] or ""),
        "to_baselines": [(BASELINES[kind], found) for kind, found in baselines.items()],
        "beaten": [
            f"{BASELINES[kind]} by {by(-found, p_value(found.adjusted_p_value))}"
            for kind, found in baselines.items()
            if found.worse
        ],
        "tfidf": baselines.get(TFIDF),
        "num_pairs": len(against) * (len(against) + 1) // 2,
        "others": others,
        "beaten_others": [name for name in others if against[name].worse],
        "equal_others": [name for name in others if not against[name].worse],
        "equal": [name for name, found in against.items() if not found.significant],
        "allowed": [
            f"{COST_NAMES[c]} {format_cost(c, limit)}" for c, limit in facts["limits"].items()
        ],
        "excluded": [_excluded(entry) for entry in facts["excluded"]],
        "scores": [
            f"{s.method} {num(s.mean)} ({span(s.interval)}, "
            f"{format_cost('train_seconds', costs[s.method])})"
            for s in sorted(choice["against_best"].scores, key=lambda score: -score.mean)
        ],
        "by_set": _by_set(there["by_set"], taken["method"]) if there else [],
        "verdicts": [f"{verdict} for {joined(names)}" for verdict, names in verdicts.items()],
        "smaller": [
            f"{name} ({size:,})" for name, size in facts["unknown"]["not_at_largest"].items()
        ],
        "HELPS": HELPS,
        "LITTLE": LITTLE,
        "CLOSE": CLOSE,
    }


def by(found: Difference, more: str = "") -> str:
    """Return a difference with its interval, and more in the brackets."""
    return f"{num(found.difference)} ({span(found.interval)}{', ' if more else ''}{more})"


def named(contender: dict[str, Any]) -> str:
    """Return a contender with its model and its labels."""
    if contender["kind"] == MAJORITY:
        return BASELINES[MAJORITY]
    name, model = contender["method"], contender["language_model"]
    with_model = f" with {model}" if model and f"({model})" not in name else ""
    return f"{name}{with_model}{_on_labels(contender) or ', which needs no labels'}"


def _on_labels(contender: dict[str, Any]) -> str:
    labels = contender["num_labels"]
    return f" on {count(labels, 'label')}" if labels else ""


def times_over(contender: dict[str, Any]) -> str:
    """Return by how much a contender exceeds the limits."""
    return joined(
        f"its {COST_NAMES[cost]} was not measured"
        if ratio is None
        else f"its {COST_NAMES[cost]} of {format_cost(cost, contender[cost])} is {ratio:.1f} "
        "times the limit"
        for cost, ratio in contender["over"].items()
    )


def lost(found: dict[str, Any]) -> str:
    """Return what is lost out of domain, or gained where that is more."""
    loss, (low, high) = found["loss"], found["interval"]
    if loss < 0:
        return f"{num(-loss)} ({span((-high, -low))}) higher"
    return f"{num(loss)} ({span((low, high))}) lower"


def trust(found: dict[str, Any]) -> str:
    """Return how well confidence fits."""
    low, high = found["interval"]
    numbers = f"(mean {num(found['mean_confidence'])}, right {num(found['accuracy'])})"
    if low > 0 or high < 0:
        return f"is too {'high' if low > 0 else 'low'} {numbers}"
    if found["ece"] > found["ece_by_chance"]:
        return f"fits on average {numbers} but not at every level"
    return f"fits how often it is right {numbers}"


def _excluded(entry: dict[str, Any]) -> str:
    reasons = joined(
        f"no {COST_NAMES[cost]} measured"
        if ratio is None
        else f"{ratio:.1f} times the {COST_NAMES[cost]}"
        for cost, ratio in entry["over"].items()
    )
    gain = ""
    if entry["gain"] is not None:
        gain = f"; {num(entry['gain'])}, {span(entry['gain_interval'])}"
    return f"{entry['method']}{_on_labels(entry)} ({reasons}{gain})"


def _by_set(by_set: dict[str, dict[str, float]], method: str) -> list[str]:
    parts = []
    for name, scores in by_set.items():
        best = max(scores, key=lambda other: scores[other])
        lead = "the highest" if best == method else f"highest {best} {num(scores[best])}"
        parts.append(f"{name} {num(scores[method])} ({lead})")
    return parts
