"""The data card: card.json, and card.html for people."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from taskfit.curate.items import PARTS
from taskfit.curate.settings import SourceSettings
from taskfit.curate.tokens import EDGES
from taskfit.curate.work import StepResult, WorkFolder
from taskfit.data.instructions import to_record
from taskfit.files import write_json_atomic, write_text_atomic

SHOWN_CHARACTERS = 700
LICENSE_CHARACTERS = 4000
PAIRS = 8


def write_card(
    folder: Path,
    results: Sequence[StepResult],
    sources: Sequence[SourceSettings],
    work: WorkFolder,
    *,
    model: str,
) -> None:
    """Write card.json and card.html.

    Args:
        folder: Where to.
        results: The reading and each step.
        sources: What was read.
        work: Where the rows stand.
        model: Whose tokenizer counted.
    """
    card = {
        "model": model,
        "edges": list(EDGES),
        "sources": _sources(results, sources, work),
        "steps": [_summary(result) for result in results],
        "pairs": _pairs(results, work),
    }
    write_json_atomic(folder / "card.json", card)
    template = resources.files("taskfit.curate").joinpath("card.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        card=card,
        bins=_bins(),
        charts=_charts(results),
        first=results[0],
        last=results[-1],
    )
    write_text_atomic(folder / "card.html", page)


def _summary(result: StepResult) -> dict[str, Any]:
    """Return a result without what differs between two equal runs."""
    names = ("name", "settings", "before", "kept", "removed", "reasons", "histogram", "facts")
    told = {name: getattr(result, name) for name in names}
    return {**told, "examples": [_short(example) for example in result.examples]}


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a removed row with its texts cut."""
    told = {name: record[name] for name in ("id", "reason", "of", "similarity", "detail")}
    return {**told, "text": shorten(_texts(record))}


def _texts(record: Mapping[str, Any]) -> str:
    """Return the texts of a row of `to_record`, with a blank line between."""
    texts = [message["content"] for message in record.get("messages", record.get("prompt", ()))]
    return "\n\n".join(
        texts + [record[name] for name in ("chosen", "rejected", "text") if name in record]
    )


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a text, cut where it is too long to show."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _sources(
    results: Sequence[StepResult], sources: Sequence[SourceSettings], work: WorkFolder
) -> list[dict[str, Any]]:
    last = len(results) - 1
    kept = Counter(item.source for item in work.kept(last, results[-1].name, results[-1].kept))
    return [
        {**told, "kept": kept[told["name"]], "license": _license(source.license)}
        for told, source in zip(results[0].facts["sources"], sources, strict=True)
    ]


def _license(given: str | None) -> str | None:
    """Return the licence: the text of a file, or what was given."""
    if given is None or not Path(given).is_file():
        return given
    text = Path(given).read_text(encoding="utf-8", errors="replace").strip()
    return shorten(text, LICENSE_CHARACTERS)


def _pairs(results: Sequence[StepResult], work: WorkFolder) -> list[dict[str, Any]]:
    """Return removed rows of the near steps beside the rows that stayed in their place."""
    pairs = []
    for number, result in enumerate(results):
        if result.name != "near" or not result.removed:
            continue
        records = _least_to_most_similar(work, number)
        ids = {record["of"] for record in records}
        kept = {
            item.row.id: shorten(_texts(to_record(item.row)))
            for item in work.kept(number, result.name, result.kept)
            if item.row.id in ids
        }
        pairs += [
            {
                "method": result.facts["method"],
                "similarity": record["similarity"],
                "removed": _short(record),
                "kept": {"id": record["of"], "text": kept[record["of"]]},
            }
            for record in records
        ]
    return pairs


def _least_to_most_similar(work: WorkFolder, number: int) -> list[dict[str, Any]]:
    """Return removed rows spread evenly from the least to the most similar.

    Those at the threshold tell whether it is too low.
    """
    with work.removed(number, "near").open(encoding="utf-8", newline="\n") as file:
        records = [json.loads(line) for line in file]
    records.sort(key=lambda record: float(record["similarity"]))
    if len(records) <= PAIRS:
        return records
    return [records[round(i * (len(records) - 1) / (PAIRS - 1))] for i in range(PAIRS)]


def _bins() -> list[str]:
    """Return a label for each bin of the histograms."""
    ends = [*EDGES[1:], None]
    return [
        f"{low:,}-{high - 1:,}" if high is not None else f"{low:,} and more"
        for low, high in zip(EDGES, ends, strict=True)
    ]


def _charts(results: Sequence[StepResult]) -> list[dict[str, Any]]:
    """Return before and after of each step that removed something, and of all steps together."""
    charts = []
    first, last = results[0].histogram["counts"], results[-1].histogram["counts"]
    for part in PARTS:
        charts.append(_chart(f"All steps: tokens of the {part}", first[part], last[part]))
    for before, after in pairwise(results):
        if after.removed:
            two = (one.histogram["counts"]["row"] for one in (before, after))
            charts.append(_chart(f"{after.name}: tokens of the row", *two))
    return charts


def _chart(title: str, before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    highest = max(1, *before)
    bars = [
        {
            "before": count,
            "after": left,
            "before_height": round(100 * count / highest, 2),
            "after_height": round(100 * left / highest, 2),
        }
        for count, left in zip(before, after, strict=True)
    ]
    return {"title": title, "bars": bars}
