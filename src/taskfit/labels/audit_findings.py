"""What an audit finds, as rows to work through."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from taskfit.data import Example

Kind = Literal[
    "label error",
    "conflicting copies",
    "in evaluation",
    "no label",
    "no text",
    "spoilt characters",
    "control tokens",
    "too long",
    "similar labels",
    "small class",
    "label words",
]
# Kind -> heading, and what it means and what to do, in the order of pages and files.
KINDS: dict[Kind, tuple[str, str]] = {
    "label error": (
        "Suspected label errors",
        "Fits that have not seen the text say another label, and more often than they are wrong "
        "about labels of this kind. The least probable given label first.",
    ),
    "conflicting copies": (
        "Copies with different labels",
        "Texts that are the same, or nearly, and labelled differently. What most copies say is "
        "suggested; where they are equally many, what the fits find most probable.",
    ),
    "in evaluation": (
        "Training texts that stand in an evaluation set",
        "What is measured on a text that was learned from tells nothing. A fit leaves out exact "
        "copies by itself, near ones it does not know of: remove these.",
    ),
    "no label": ("Rows without a label", "They are not learned from. Label or remove them."),
    "no text": ("Rows without a text", "There is nothing to learn. Remove them."),
    "spoilt characters": (
        "Encodings gone wrong",
        "Characters that come of reading a text in a wrong encoding. Mend them at the source.",
    ),
    "control tokens": (
        "Texts that hold the model's control tokens",
        "They are read as characters, unless task.allow_control_tokens is set. Often they are left "
        "over from an export.",
    ),
    "too long": (
        "Texts too long for the model",
        "They are cut at their end, so what is behind is not seen. Raise model.max_length if the "
        "model allows it, or shorten them.",
    ),
    "similar labels": (
        "Labels that look the same",
        "Probably one label in two spellings. `relabel` gives all rows of it the suggested one.",
    ),
    "small class": (
        "Classes too small to judge",
        "Of so few texts nothing can be learned, nor said about their labels. Add texts, or merge "
        "the class.",
    ),
    "label words": (
        "Label words that collide",
        "The tokens of one label's word start those of another's, so that methods that read label "
        "words tell them apart by what follows alone. Give one of them another word.",
    ),
}
# Kinds that are about a label and all its rows, not about one row.
OF_LABELS = ("similar labels", "small class", "label words")
DECISION = "decision"
SEPARATOR = "\n"  # between text columns
COLUMNS = (
    *(DECISION, "kind", "rank", "id", "text", "label", "suggested", "probability"),
    *("suggested_probability", "related", "note", "row"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: What is wrong, one of `KINDS`.
        label: The given label; empty where there is none.
        id: The row, such as `tickets.csv:17`; empty for what is about a label.
        text: Its texts.
        suggested: The label to give instead; empty where none is known.
        probability: Of the given label, by fits that have not seen the text; None: not judged.
        suggested_probability: Of the suggested one.
        related: Other rows that it is about.
        note: What is particular to it.
    """

    kind: Kind
    label: str
    id: str = ""
    text: str = ""
    suggested: str = ""
    probability: float | None = None
    suggested_probability: float | None = None
    related: Sequence[str] = field(default_factory=tuple)
    note: str = ""


def found_in(example: Example, kind: Kind, *, note: str = "") -> Finding:
    """Return a finding about a row."""
    text = text_of_example(example)
    return Finding(kind, example.label or "", id=example.id, text=text, note=note)


def text_of_example(example: Example) -> str:
    """Return the texts of a row as one."""
    return SEPARATOR.join(example.texts.values())


def row_mark(texts: Sequence[str], label: str) -> str:
    """Return a short hash of what a row says, by which it is known again.

    It starts with a letter, since spreadsheets take digits and an e for a number.

    Args:
        texts: Of its text columns, as they were read.
        label: What the label column holds, as it was read.
    """
    content = json.dumps([*texts, label.strip()], ensure_ascii=False)
    return "r" + hashlib.sha256(content.encode()).hexdigest()[:11]


def findings_table(findings: Sequence[Finding], marks: Mapping[str, str]) -> pd.DataFrame:
    """Return findings as the rows of `audit.csv`, with a column for decisions.

    Args:
        findings: Of a kind the worst first.
        marks: Row -> `row_mark`.
    """
    places = {kind: place for place, kind in enumerate(KINDS)}
    ordered = sorted(findings, key=lambda one: places[one.kind])
    ranks: dict[str, int] = {}
    rows = []
    for one in ordered:
        ranks[one.kind] = ranks.get(one.kind, 0) + 1
        rows.append(
            {
                DECISION: "",
                "kind": one.kind,
                "rank": ranks[one.kind],
                "id": one.id,
                "text": one.text,
                "label": one.label,
                "suggested": one.suggested,
                "probability": _digits(one.probability),
                "suggested_probability": _digits(one.suggested_probability),
                "related": "; ".join(one.related),
                "note": one.note,
                "row": marks.get(one.id, ""),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _digits(probability: float | None) -> str:
    return "" if probability is None or probability != probability else f"{probability:.4f}"
