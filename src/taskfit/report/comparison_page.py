"""`report.html` of a comparison: advice, tables and figures in one file, made from run folders.

No model is loaded. Every figure's numbers are written to `tables/`, every figure to `plots/` and
the advice to `advice.txt` and `advice.json`.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.report import tables
from taskfit.report.advice import Advice, Limits, advise
from taskfit.report.evidence import read_evidence
from taskfit.report.hard_examples import (
    NUM_SHOWN,
    hard_examples,
    suspected_label_errors,
)
from taskfit.report.plot_style import metric_name, styles_of
from taskfit.report.run_plots import METRIC_NAMES
from taskfit.report.sections import Draft, Section, sections_of
from taskfit.report.systems import (
    AnswerStore,
    SizeComparison,
    compare_at,
    summary_size,
    systems_of,
)
from taskfit.screen import Screen

SHOWN_CHARACTERS = 400
NUM_ELSEWHERE = 5  # hard examples of each set out of domain


@dataclass(frozen=True, slots=True)
class SizeTable:
    """The methods of one size side by side.

    Attributes:
        size: Number of labels.
        draws: Draws that are compared.
        rows: A row a system.
    """

    size: int
    draws: list[int]
    rows: list["Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """A system in the summary of a size; costs are means over the draws that are compared.

    Attributes:
        system: Its name.
        method: Name of the method.
        model: Its model.
        cells: Evaluation set -> row of `comparison_table`; none where it was not measured.
        costs: Column of `run_table` -> mean, NaN where unknown.
        commands: How to run each draw again.
    """

    system: str
    method: str
    model: str
    cells: dict[str, pd.Series]
    costs: pd.Series
    commands: list[str]


def report_comparison(folder: Path, *, limits: Limits, screen: Screen, texts: bool = True) -> Path:
    """Write the report of a comparison into its folder.

    Args:
        folder: As `taskfit compare --out` filled it; it may be half finished.
        limits: What the user can afford.
        screen: Where progress is shown.
        texts: Whether page and tables hold the texts of hard examples, or their ids alone, so that
            they may go where the texts may not.

    Returns:
        The path of `report.html`.

    Raises:
        CheckpointError: If there is no finished run, or one cannot be read.
    """
    evidence = read_evidence(folder)
    systems, store = systems_of(evidence), AnswerStore(evidence)
    screen.note(f"reporting {len(evidence.runs)} runs of {len(systems)} methods")
    metric = tables.metric_of(evidence)
    draft = Draft(
        folder=folder,
        evidence=evidence,
        systems=systems,
        store=store,
        size=summary_size(systems),
        styles=styles_of([system.name for system in systems]),
        metric=metric,
        name=metric_name(metric, multi_label=evidence.multi_label),
        runs=tables.run_table(systems),
        scores=tables.score_table(evidence, systems, store),
        texts=texts,
    )
    advice = advise(evidence, limits=limits)
    write_text_atomic(folder / "advice.txt", advice.text.rstrip() + "\n")
    write_json_atomic(folder / "advice.json", advice.to_dict())
    draft.save("runs", draft.runs)
    draft.save("failures", tables.failure_table(evidence.failures))
    summaries = _summaries(draft)
    sections = list(sections_of(draft))
    path = folder / "report.html"
    write_text_atomic(path, _render(draft, advice, summaries, sections))
    return path


def _render(
    draft: Draft, advice: Advice, summaries: list[SizeTable], sections: list[Section]
) -> str:
    evidence = draft.evidence
    hard, suspects = _hard(draft)
    template = resources.files("taskfit.report").joinpath("comparison.html")
    # Texts come from the user's data: everything is escaped.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests["known"] = lambda value: value is not None and not pd.isna(value)
    first = evidence.runs[0].result
    counts = draft.runs.groupby("evaluation", sort=False)["num_examples"].max()
    return environment.from_string(template.read_text("utf-8")).render(
        title=f"Methods compared on {first.task}",
        advice=[part for part in re.split(r"\n\s*\n", advice.text.strip()) if part],
        evidence=evidence,
        systems=draft.systems,
        num_repeated=sum(system.num_repeated for system in draft.systems),
        metric=draft.metric,
        metric_name=draft.name,
        metric_names=METRIC_NAMES,
        counts=counts.to_dict(),
        main=next((one for one in summaries if one.size == draft.size), None),
        others=[one for one in summaries if one.size != draft.size],
        sections=sections,
        hard=hard,
        suspects=suspects,
        runs=draft.runs.to_dict("records"),
        machine=first.machine,
        versions=first.versions,
    )


def _summaries(draft: Draft) -> list[SizeTable]:
    """Compare all systems at every size; the numbers go to `tables/comparison.csv`."""
    draft.save("scores", draft.scores)
    found: list[SizeTable] = []
    everything: list[SizeComparison] = []
    for size in draft.evidence.sizes or [0]:
        compared = [
            compare_at(draft.systems, size, name, metric=draft.metric, store=draft.store)
            for name in draft.evidence.evaluations
        ]
        known = [one for one in compared if one is not None]
        everything += known
        if known:
            found.append(_size_table(draft, size, known))
    draft.save("comparison", tables.comparison_table(everything))
    return found


def _size_table(draft: Draft, size: int, compared: Sequence[SizeComparison]) -> SizeTable:
    table = tables.comparison_table(compared)
    cells = {(str(row["system"]), str(row["evaluation"])): row for _, row in table.iterrows()}
    draws = compared[0].draws
    columns = ["training_seconds", "total_seconds", "processor_seconds"]
    columns += ["peak_memory_bytes", "latency_seconds"]
    runs = draft.runs[draft.runs["evaluation"] == compared[0].evaluation]
    rows = []
    for system in draft.systems:
        own = {
            n: cells[system.name, n]
            for n in draft.evidence.evaluations
            if (system.name, n) in cells
        }
        if not own:
            continue
        used = runs[(runs["system"] == system.name) & runs["size"].isin([size, 0])]
        used = used[used["draw"].isin(draws)] if system.sees_labels else used
        result = system.runs[0].result
        commands = list(dict.fromkeys(used["command"]))
        rows.append(
            Row(system.name, result.method, result.model, own, used[columns].mean(), commands)
        )
    inside = draft.evidence.in_domain
    rows.sort(key=lambda row: -row.cells[inside]["score"] if inside in row.cells else np.inf)
    return SizeTable(size, draws, rows)


def _hard(draft: Draft) -> tuple[list[dict[Hashable, Any]], list[dict[Hashable, Any]]]:
    hard, suspects = [], []
    for place, name in enumerate(draft.evidence.evaluations):
        num = NUM_ELSEWHERE if place else NUM_SHOWN
        hard.append(hard_examples(draft.systems, name, draft.store, num=num))
        suspects.append(suspected_label_errors(draft.systems, name, draft.store, num=num))
    found = []
    for kind, parts in (("hard_examples", hard), ("suspected_label_errors", suspects)):
        filled = [part for part in parts if len(part)]
        table = pd.concat(filled, ignore_index=True) if filled else parts[0]
        if not draft.texts:
            table = table.assign(text="")
        draft.save(kind, table)
        found.append(table.assign(text=table["text"].map(_shorten)).to_dict("records"))
    return found[0], found[1]


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
