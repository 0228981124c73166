"""`audit.html`: what an audit found, to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from taskfit.labels.audit_findings import KINDS, OF_LABELS
from taskfit.report.html_page import write_html
from taskfit.report.words import shorten
from taskfit.runs.records import describe_machine, library_versions

PAGE, CSV = "audit.html", "audit.csv"
# More rows of a kind are in audit.csv alone.
MOST_SHOWN = 200
SHOWN_CHARACTERS = 400
SHOWN_RELATED = 5


def write_audit_page(
    folder: Path,
    findings: pd.DataFrame,
    described: Mapping[str, Any],
    confused: Sequence[tuple[str, str, int]],
) -> Path:
    """Write the page of an audit into its folder and return its path.

    Args:
        folder: The audit's.
        findings: As in `audit.csv`.
        described: As in `audit.json`.
        confused: Pairs of given and true label with the estimated rows.
    """
    parts = []
    for kind, (heading, meaning) in KINDS.items():
        rows = findings[findings["kind"] == kind]
        if len(rows):
            shown = [_row(row) for row in rows.head(MOST_SHOWN).to_dict("records")]
            parts.append(
                {
                    "kind": kind,
                    "heading": heading,
                    "meaning": meaning,
                    "rows": shown,
                    "more": len(rows) - len(shown),
                    "of_labels": kind in OF_LABELS,
                }
            )
    return write_html(
        folder,
        "audit.html",
        file=PAGE,
        title=f"Labels of {described['table']}",
        described=described,
        csv=folder / CSV,
        parts=parts,
        headings={kind: heading for kind, (heading, _) in KINDS.items()},
        confused=confused,
        machine=describe_machine(),
        versions=library_versions(),
    )


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    related = [one for one in str(row["related"]).split("; ") if one]
    more = f" and {len(related) - SHOWN_RELATED} more" if len(related) > SHOWN_RELATED else ""
    return {
        **row,
        "text": shorten(str(row["text"]), SHOWN_CHARACTERS),
        "related": ", ".join(related[:SHOWN_RELATED]) + more,
    }
