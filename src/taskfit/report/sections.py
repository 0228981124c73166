"""The sections of a comparison's report: each draws its figures and says what they show.

Numbers come from `tables.py` and `confidence.py`, pictures from `comparison_plots.py`; here is
which method variants and sizes stand in which figure.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from taskfit.files import write_text_atomic
from taskfit.report import comparison_plots as plots
from taskfit.report import tables
from taskfit.report.confidence import confidence_tables
from taskfit.report.evidence import Evidence
from taskfit.report.html_page import Picture, read_picture
from taskfit.report.plot_style import Style
from taskfit.report.run_plots import plot_confusion

NUM_CONFIDENT = 4  # method variants in the diagrams of confidence
NUM_CONFUSIONS = 24
MAX_LINES = 14  # method variants in one figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a note, and the pictures below it."""

    title: str
    note: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What all parts of a report are made from.

    Attributes:
        evidence: The comparison's finished runs.
        size: Number of labels of the summary.
        styles: How each method variant is drawn.
        name: What the metric is called on axes.
        runs: As `run_table` returns it.
        scores: As `score_table` returns it.
        texts: Whether texts of examples are written.
        ending: Of the folders of tables and plots.
    """

    evidence: Evidence
    size: int
    styles: dict[str, Style]
    name: str
    runs: pd.DataFrame
    scores: pd.DataFrame
    texts: bool = True
    ending: str = ""

    def save(self, name: str, table: pd.DataFrame) -> str:
        """Write a table into the folder and return its path in it."""
        path = f"tables{self.ending}/{name}.csv"
        write_text_atomic(self.evidence.folder / path, table.to_csv(index=False))
        return path

    def figure(
        self, name: str, table: str, draw: Callable[[Path], str | None], alt: str = ""
    ) -> Picture:
        """Draw what stands in a table into the folder; `alt` where drawing returns no words."""
        file = re.sub(r"[^\w.-]+", "-", name)
        path = self.evidence.folder / f"plots{self.ending}" / file
        return read_picture(path, draw(path) or alt, caption=f"Numbers: {table}")

    def figures(
        self, name: str, table: str, draw: Callable[..., str], shown: Sequence[str]
    ) -> list[Picture]:
        """Draw a figure in panels, each of few enough method variants to read.

        Args:
            name: Of the file, before the panel's number.
            table: The file with its numbers.
            draw: Draws a panel, given its path and `styles`.
            shown: Names of the method variants.
        """
        found = []
        for start in range(0, len(shown), MAX_LINES):
            styles = {one: self.styles[one] for one in shown[start : start + MAX_LINES]}
            ending = f"_{start // MAX_LINES + 1}" if len(shown) > MAX_LINES else ""
            found.append(self.figure(f"{name}{ending}", table, partial(draw, styles=styles)))
        return found


def sections_of(draft: Draft) -> list[Section]:
    """Draw and return the sections that have something to show."""
    sections = [_domains(draft), _by_labels(draft), _costs(draft)]
    if not draft.evidence.multi_label:
        sections += [_confusions(draft), _confidence(draft)]
    sections += [_training(draft), *_spreads(draft)]
    return [section for section in sections if section.pictures]


def _domains(draft: Draft) -> Section:
    inside, *others = draft.evidence.evaluations
    figures = []
    for outside in others:
        own = draft.runs[draft.runs["evaluation"].isin([inside, outside])]
        both = own.groupby(["system", "size", "draw"])["evaluation"].nunique() > 1
        there = set(both[both].index.get_level_values("system"))
        shown = [name for name in draft.styles if name in there]
        draw = partial(
            plots.plot_domains,
            draft.runs,
            sets=(inside, outside),
            metric=draft.name,
            score=draft.evidence.metric,
        )
        figures += draft.figures(f"domains_{outside}", "tables/runs.csv", draw, shown)
    note = (
        "A marker is a method with its most labels, the mean over its draws with their range; a "
        "thin line leads there from fewer labels. Where there is a zero-shot method, its scores "
        "are the two lines. On the dotted line a method is as good out of domain as in it."
    )
    return Section("In domain and out of domain", note, figures)


def _by_labels(draft: Draft) -> Section:
    figures, scores = [], draft.scores
    for name in draft.evidence.evaluations:
        shown = list(dict.fromkeys(scores[scores["evaluation"] == name]["system"]))
        draw = partial(plots.plot_by_labels, scores, evaluation=name, metric=draft.name)
        figures += draft.figures(f"labels_{name}", "tables/scores.csv", draw, shown)
    note = (
        "Means over draws. Intervals are over draws and examples, where there is one draw over "
        "examples only. Methods are set a little beside each other; a level line saw no labels."
    )
    return Section("More labels", note, figures)


def _costs(draft: Draft) -> Section:
    inside, figures = draft.evidence.in_domain, []
    costs = tables.cost_table(draft.scores, draft.runs, evaluation=inside)
    table = draft.save("cost", costs)
    for cost in tables.costs_of(draft.runs):
        draw = partial(plots.plot_cost, costs, cost=cost, evaluation=inside, metric=draft.name)
        figures += draft.figures(f"cost_{cost}", table, draw, list(draft.styles))
    note = (
        "A marker is a method with its most labels, the mean over its draws with the 95 % interval "
        "of its score; a thin line leads there from fewer labels. Nothing beats the numbered "
        "ones, the Pareto front: whatever is better costs more. Seconds are by the clock, which "
        "other work on the machine slows, unless the axis says processor; memory is what a run "
        "used above its start."
    )
    return Section("What it costs", note, figures)


def _confusions(draft: Draft) -> Section:
    evidence, inside = draft.evidence, draft.evidence.in_domain
    best = tables.ranked(evidence, draft.scores, size=draft.size, evaluation=inside)
    counts = tables.confusion_table(evidence, best[:NUM_CONFUSIONS], inside)
    table = draft.save("confusion", counts)
    figures = []
    for place, contender in enumerate(best[:NUM_CONFUSIONS], 1):
        own = counts[counts["system"] == contender.name]
        matrix = own.pivot_table("count", "gold", "predicted", sort=False)
        labels = evidence.answers[inside].labels
        unanswered, num_draws = int(matrix[""].sum()), len(contender.runs)
        shown = dataclasses.replace(
            contender.first.result.evaluations[inside],
            confusion_matrix=matrix.loc[labels, labels].astype(int).to_numpy().tolist(),
            labels=labels,
            num_examples=int(own["count"].sum()),
        )
        alt = f"Confusion matrix of {contender.name} on {inside}, {num_draws} draws added up"
        alt += f", {unanswered:,} without an answer." if unanswered else "."
        draw = partial(plot_confusion, shown, title=contender.name)
        figures.append(draft.figure(f"confusion_{place:02}_{contender.name}", table, draw, alt))
    note = f"On {inside}, {_labels(draft.size)}, draws added up, the best method first."
    return Section("Confusion matrices", note, figures)


def _confidence(draft: Draft) -> Section:
    evidence, inside, figures = draft.evidence, draft.evidence.in_domain, []
    best = tables.ranked(evidence, draft.scores, size=draft.size, evaluation=inside)[:NUM_CONFIDENT]
    bins, curves = confidence_tables(evidence, best, inside)
    for name, table, draw in (
        ("reliability", bins, plots.plot_reliability),
        ("risk_coverage", curves, plots.plot_risk_coverage),
    ):
        if len(table):
            drawn = partial(draw, table, styles=draft.styles)
            figures.append(draft.figure(name, draft.save(name, table), drawn))
    note = (
        f"The best {len(best)} on {inside}, {_labels(draft.size)}, draws pooled. First: on the "
        "dotted line probabilities are what they say. Second: how many answers are wrong if only "
        "the surest are given."
    )
    return Section("How far confidence can be trusted", note, figures)


def _training(draft: Draft) -> Section:
    history = tables.history_table(draft.evidence)
    table, figures = draft.save("training", history), []
    for size in sorted(set(history["size"])):
        shown = list(dict.fromkeys(history[history["size"] == size]["system"]))
        draw = partial(plots.plot_training, history, size=size)
        figures += draft.figures(f"training_{size}", table, draw, shown)
    note = (
        "Running means. Methods minimise different losses, so compare shapes, not heights; "
        "a line is a run."
    )
    return Section("Training", note, figures)


def _spreads(draft: Draft) -> list[Section]:
    evidence = draft.evidence
    draws = tables.draw_table(draft.runs, metric=evidence.metric)
    draft.save("spread_draws", draws)
    kinds = (
        (
            "draws",
            "draw",
            draws[draws["size"].isin([draft.size, 0])],
            f"Spread over draws, {_labels(draft.size)}",
            "Another draw has other training examples, another order and other first weights.",
        ),
        (
            "orders",
            "choice of demonstrations",
            tables.setting_table(evidence, tables.DEMONSTRATION_KEYS),
            "Spread over demonstrations and their orders",
            "Runs of a row differ in their demonstrations' settings only.",
        ),
        (
            "templates",
            "template",
            tables.setting_table(evidence, tables.TEMPLATE_KEYS),
            "Spread over templates",
            "Runs of a row differ in the words around the text only.",
        ),
    )
    sections = []
    for kind, varied, found, title, note in kinds:
        if len(found):
            table = draft.save(f"spread_{kind}", draws if kind == "draws" else found)
            draw = partial(plots.plot_spread, found, metric=draft.name, varied=varied)
            figures = [draft.figure(f"spread_{kind}", table, draw)]
            sections.append(Section(title, note, figures))
    return sections


def _labels(size: int) -> str:
    return f"{size:,} labels" if size else "no labels"
