"""`report.html` of a comparison: advice, tables and figures in one file, made from run folders.

No model is loaded. Every figure's numbers are written to `tables/`, every figure to `plots/` and
the advice to `advice.txt` and `advice.json`. What is made under limits has them in its name, so
that it replaces nothing that was made under others.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.report import tables
from taskfit.report.advice import Advice, Limits, advise
from taskfit.report.evidence import read_evidence
from taskfit.report.hard_examples import NUM_SHOWN, hard_examples, suspected_label_errors
from taskfit.report.html_page import write_html
from taskfit.report.plot_style import styles_of
from taskfit.report.sections import Draft, sections_of
from taskfit.report.variants import summary_size
from taskfit.report.words import METRIC_NAMES, metric_name, shorten
from taskfit.screen import Screen

SHOWN_CHARACTERS = 400
NUM_ELSEWHERE = 5  # hard examples of each set out of domain


def report_comparison(
    folder: Path,
    *,
    limits: Limits,
    screen: Screen,
    texts: bool = True,
    metric: str | None = None,
) -> Path:
    """Write the report of a comparison into its folder.

    Args:
        folder: As `taskfit compare --out` filled it; it may be half finished.
        limits: What the user can afford.
        screen: Where progress is shown.
        texts: Whether page and tables hold the texts of hard examples, or their ids alone, so that
            they may go where the texts may not.
        metric: What to judge by, of `METRICS`; None: the task's. Another one stands in the names of
            all that is written.

    Returns:
        The path of the page, `report.html` where there are no limits.

    Raises:
        CheckpointError: If there is no finished run, or one cannot be read.
        SettingsError: If the runs cannot be judged by the metric.
    """
    evidence = read_evidence(folder, metric=metric)
    by_metric = "" if metric is None else f"-{metric}"
    variants = evidence.variants
    screen.note(f"reporting {len(evidence.runs)} runs of {len(variants)} methods")
    draft = Draft(
        evidence=evidence,
        size=summary_size(variants),
        styles=styles_of([variant.name for variant in variants]),
        name=metric_name(evidence.metric, multi_label=evidence.multi_label),
        runs=tables.run_table(evidence),
        scores=tables.score_table(evidence),
        texts=texts,
        ending=by_metric,
    )
    advice = advise(evidence, limits=limits)
    ending = f"{by_metric}{limits.file_ending}"
    write_text_atomic(folder / f"advice{ending}.txt", advice.text + "\n")
    write_json_atomic(folder / f"advice{ending}.json", advice.to_dict())
    draft.save("runs", draft.runs)
    draft.save("scores", draft.scores)
    failures = {"folder": list(evidence.failures), "error": list(evidence.failures.values())}
    draft.save("failures", pd.DataFrame(failures))
    return _write(draft, advice, f"report{ending}.html")


def _write(draft: Draft, advice: Advice, file: str) -> Path:
    evidence = draft.evidence
    first, compared = evidence.runs[0].result, tables.comparison_table(evidence)
    draft.save("comparison", compared)
    by_size = [_size_table(draft, rows) for _, rows in compared.groupby("size", sort=False)]
    counts = draft.runs.groupby("evaluation", sort=False)["num_examples"].max()
    return write_html(
        evidence.folder,
        "comparison.html",
        file=file,
        title=f"Methods compared on {first.task}",
        advice=advice,
        evidence=evidence,
        variants=evidence.variants,
        num_repeated=evidence.num_repeated,
        metric=evidence.metric,
        metric_name=draft.name,
        metric_names=METRIC_NAMES,
        counts=counts.to_dict(),
        main=next((one for one in by_size if one["size"] == draft.size), None),
        others=[one for one in by_size if one["size"] != draft.size],
        sections=sections_of(draft),
        hard=_listed(draft, "hard_examples", hard_examples),
        suspects=_listed(draft, "suspected_label_errors", suspected_label_errors),
        runs=draft.runs.to_dict("records"),
        machine=first.machine,
        versions=first.versions,
    )


def _size_table(draft: Draft, table: pd.DataFrame) -> dict[str, Any]:
    """Return the methods of one size side by side: `size`, `draws` that are compared, and `rows`.

    A row of each method variant has `system`, its name, `method` and `model`, `cells` (evaluation
    set -> row of `comparison_table`; none where it was not measured), `costs` (column of
    `run_table` -> mean over the draws, NaN where unknown) and `commands` to run it again.
    """
    first = table.iloc[0]
    size, evaluation = int(first["size"]), first["evaluation"]
    draws = [int(draw) for draw in first["draws"].split()]
    runs = draft.runs[draft.runs["evaluation"] == evaluation]
    rows: list[dict[str, Any]] = []
    for variant in draft.evidence.variants:
        own = table[table["system"] == variant.name]
        if own.empty:
            continue
        used = runs[(runs["system"] == variant.name) & runs["size"].isin([size, 0])]
        used = used[used["draw"].isin(draws)] if variant.sees_labels else used
        cells = {str(cell["evaluation"]): cell for _, cell in own.iterrows()}
        costs, commands = used[tables.COSTS].mean(), list(used["command"].unique())
        row = {"system": variant.name, "method": variant.method, "model": variant.model}
        rows.append({**row, "cells": cells, "costs": costs, "commands": commands})
    best = table[table["evaluation"] == draft.evidence.in_domain].set_index("system")["score"]
    rows.sort(key=lambda row: -best.get(row["system"], -np.inf))
    return {"size": size, "draws": draws, "rows": rows}


def _listed(
    draft: Draft, name: str, find: Callable[..., pd.DataFrame]
) -> list[dict[Hashable, Any]]:
    """Return the rows of a list of examples over all evaluation sets; they go to `tables/`."""
    inside, *others = draft.evidence.evaluations
    parts = [find(draft.evidence, inside, num=NUM_SHOWN)]
    parts += [find(draft.evidence, other, num=NUM_ELSEWHERE) for other in others]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    if not draft.texts:
        table = table.assign(text="")
    draft.save(name, table)
    shown = table.assign(text=[shorten(text, SHOWN_CHARACTERS) for text in table["text"]])
    return shown.to_dict("records")
