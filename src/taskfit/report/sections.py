"""The sections of a comparison's report: each draws its figures and says what they show.

Numbers come from `tables.py`, pictures from `comparison_plots.py` and `cost_plots.py`; here is
which systems and sizes stand in which figure.
"""

import base64
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from taskfit.files import write_text_atomic
from taskfit.report import comparison_plots, cost_plots, tables
from taskfit.report.evidence import Evidence
from taskfit.report.plot_style import Style, drawing
from taskfit.report.run_plots import plot_confusion
from taskfit.report.systems import AnswerStore, System
from taskfit.stats import Evaluation

NUM_CONFIDENT = 4  # systems in the diagrams of confidence
NUM_CONFUSIONS = 24
MAX_LINES = 14  # systems in one figure


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in the draft.

    Attributes:
        alt: What it shows, in words.
        data: Its PNG file, base64.
        width: Pixels, so that the page does not jump.
        height: Likewise.
        table: The file with its numbers.
    """

    alt: str
    data: str
    width: int
    height: int
    table: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a note, and the figures below it."""

    title: str
    note: str
    figures: list[Figure]


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What all parts of a report are made from.

    Attributes:
        folder: The comparison's folder.
        evidence: Its finished runs.
        systems: The same by method and model.
        store: Their predictions.
        size: Number of labels of the summary.
        styles: How each system is drawn.
        metric: The score that is reported, a column of `runs`.
        name: What it is called on axes.
        runs: As `run_table` returns it.
        scores: As `score_table` returns it.
        texts: Whether texts of examples are written.
    """

    folder: Path
    evidence: Evidence
    systems: list[System]
    store: AnswerStore
    size: int
    styles: dict[str, Style]
    metric: str
    name: str
    runs: pd.DataFrame
    scores: pd.DataFrame
    texts: bool = True

    def save(self, name: str, table: pd.DataFrame) -> str:
        """Write a table into the folder and return its path in it."""
        path = f"tables/{name}.csv"
        write_text_atomic(self.folder / path, table.to_csv(index=False))
        return path

    def figure(self, name: str, table: str, draw: Callable[[Path], str]) -> Figure:
        """Draw a figure into the folder and return it for the page."""
        path = self.folder / "plots" / re.sub(r"[^\w.-]+", "-", name)
        alt = draw(path)
        png = path.with_name(f"{path.name}.png").read_bytes()
        # Width and height stand at fixed places of a PNG's header.
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        return Figure(alt, base64.b64encode(png).decode("ascii"), width, height, table)

    def panels(self, systems: Sequence[System]) -> Iterator[tuple[str, dict[str, Style]]]:
        """Yield an ending for names and the systems of each panel, few enough to tell apart."""
        names = [system.name for system in systems]
        for start in range(0, len(names), MAX_LINES):
            part = names[start : start + MAX_LINES]
            ending = f"_{start // MAX_LINES + 1}" if len(names) > MAX_LINES else ""
            yield ending, {name: self.styles[name] for name in part}


def sections_of(draft: Draft) -> Iterator[Section]:
    """Draw and yield the sections that have something to show, one after the other."""
    yield from (
        section
        for part in (_domains, _by_labels, _costs, _confusions, _confidence, _training, _spreads)
        for section in part(draft)
        if section.figures
    )


def _domains(draft: Draft) -> list[Section]:
    inside, *others = draft.evidence.evaluations
    table = "tables/runs.csv"
    figures = []
    for outside in others:
        both = {inside, outside}
        there = [
            s for s in draft.systems if any(both <= r.result.evaluations.keys() for r in s.runs)
        ]
        for ending, styles in draft.panels(there):

            def draw(path: Path, other: str = outside, shown: dict[str, Style] = styles) -> str:
                return comparison_plots.plot_domains(
                    draft.runs,
                    path,
                    sets=(inside, other),
                    styles=shown,
                    metric=draft.name,
                    score=draft.metric,
                )

            figures.append(draft.figure(f"domains_{outside}{ending}", table, draw))
    note = (
        "A marker is a run; the larger, the more labels it had. Where there is a zero-shot method, "
        "its scores are the two lines. On the dotted line a run is as good out of domain as in it."
    )
    return [Section("In domain and out of domain", note, figures)]


def _by_labels(draft: Draft) -> list[Section]:
    figures = []
    for name in draft.evidence.evaluations:
        own = draft.scores[draft.scores["evaluation"] == name]
        there = [system for system in draft.systems if system.name in set(own["system"])]
        for ending, styles in draft.panels(there):

            def draw(path: Path, name: str = name, shown: dict[str, Style] = styles) -> str:
                return comparison_plots.plot_by_labels(
                    draft.scores, path, evaluation=name, styles=shown, metric=draft.name
                )

            figures.append(draft.figure(f"labels_{name}{ending}", "tables/scores.csv", draw))
    note = (
        "Means over draws. Intervals are over draws and examples, where there is one draw over "
        "examples only. Methods are set a little beside each other; a level line saw no labels."
    )
    return [Section("More labels", note, figures)]


def _costs(draft: Draft) -> list[Section]:
    inside = draft.evidence.in_domain
    costs = tables.cost_table(draft.scores, draft.runs, evaluation=inside)
    table = draft.save("cost", costs)
    figures = []
    for cost in tables.costs_of(draft.runs):
        for ending, styles in draft.panels(draft.systems):

            def draw(path: Path, cost: str = cost, shown: dict[str, Style] = styles) -> str:
                return cost_plots.plot_cost(
                    costs, path, cost=cost, evaluation=inside, styles=shown, metric=draft.name
                )

            figures.append(draft.figure(f"cost_{cost}{ending}", table, draw))
    note = (
        "A marker is a method at a size, the mean over its draws. Nothing beats the numbered ones, "
        "the Pareto front: whatever is better costs more. Seconds are by the clock, which other "
        "work on the machine slows, unless the axis says processor; memory is what a run used "
        "above its start."
    )
    return [Section("What it costs", note, figures)]


def _confusions(draft: Draft) -> list[Section]:
    if draft.evidence.multi_label:
        return []
    inside = draft.evidence.in_domain
    ranked = tables.sorted_by(draft.systems, draft.scores, size=draft.size, evaluation=inside)
    counts = tables.confusion_table(ranked[:NUM_CONFUSIONS], draft.size, inside, draft.store)
    table = draft.save("confusion", counts)
    figures = []
    for place, system in enumerate(ranked[:NUM_CONFUSIONS], 1):
        own = counts[counts["system"] == system.name]
        matrix = own.pivot_table("count", "gold", "predicted", sort=False)
        labels = draft.store.labels(inside)
        unanswered = int(matrix[""].sum()) if "" in matrix else 0
        shown = dataclasses.replace(
            next(iter(system.at(draft.size).values())).result.evaluations[inside],
            confusion_matrix=matrix.loc[labels, labels].astype(int).to_numpy().tolist(),
            labels=labels,
            num_examples=int(own["count"].sum()),
        )

        def draw(path: Path, shown: Evaluation = shown, name: str = system.name) -> str:
            with drawing():
                plot_confusion(shown, path, title=name)
            return ""

        figure = draft.figure(f"confusion_{place:02}_{system.name}", table, draw)
        num_draws = int(own["num_draws"].iloc[0])
        alt = f"Confusion matrix of {system.name} on {inside}, {num_draws} draws added up"
        alt += f", {unanswered:,} without an answer" if unanswered else ""
        figures.append(dataclasses.replace(figure, alt=alt + "."))
    note = f"On {inside}, {_labels(draft.size)}, draws added up, the best method first."
    return [Section("Confusion matrices", note, figures)]


def _confidence(draft: Draft) -> list[Section]:
    if draft.evidence.multi_label:
        return []
    inside = draft.evidence.in_domain
    ranked = tables.sorted_by(draft.systems, draft.scores, size=draft.size, evaluation=inside)
    best = ranked[:NUM_CONFIDENT]
    bins, curves = tables.confidence_tables(best, draft.size, inside, draft.store)
    if bins.empty:
        return []
    styles = {system.name: draft.styles[system.name] for system in best}
    figures = [
        draft.figure(
            "reliability",
            draft.save("reliability", bins),
            lambda path: cost_plots.plot_reliability(bins, path, styles=styles),
        ),
        draft.figure(
            "risk_coverage",
            draft.save("risk_coverage", curves),
            lambda path: cost_plots.plot_risk_coverage(curves, path, styles=styles),
        ),
    ]
    note = (
        f"The best {len(best)} on {inside}, {_labels(draft.size)}, draws pooled. First: on the "
        "dotted line probabilities are what they say. Second: how many answers are wrong if only "
        "the surest are given."
    )
    return [Section("How far confidence can be trusted", note, figures)]


def _training(draft: Draft) -> list[Section]:
    history = tables.history_table(draft.systems)
    table = draft.save("training", history)
    figures = []
    for size in sorted(set(history["size"])):
        trained = set(history[history["size"] == size]["system"])
        there = [system for system in draft.systems if system.name in trained]
        for ending, styles in draft.panels(there):

            def draw(path: Path, size: int = size, shown: dict[str, Style] = styles) -> str:
                return comparison_plots.plot_training(history, path, size=size, styles=shown)

            figures.append(draft.figure(f"training_{size}{ending}", table, draw))
    note = (
        "Running means. Methods minimise different losses, so compare shapes, not heights; "
        "a line is a run."
    )
    return [Section("Training", note, figures)]


def _spreads(draft: Draft) -> list[Section]:
    draws = tables.draw_table(draft.runs, metric=draft.metric)
    draft.save("spread_draws", draws)
    at_size = draws[draws["size"].isin([draft.size, 0])]
    kinds = (
        (
            "draws",
            "draw",
            at_size,
            f"Spread over draws, {_labels(draft.size)}",
            "Another draw has other training examples, another order and other first weights.",
        ),
        (
            "orders",
            "choice of demonstrations",
            tables.setting_table(draft.systems, tables.DEMONSTRATION_KEYS, metric=draft.metric),
            "Spread over demonstrations and their orders",
            "Runs of a row differ in their demonstrations' settings only.",
        ),
        (
            "templates",
            "template",
            tables.setting_table(draft.systems, tables.TEMPLATE_KEYS, metric=draft.metric),
            "Spread over templates",
            "Runs of a row differ in the words around the text only.",
        ),
    )
    sections = []
    for kind, varied, found, title, note in kinds:
        if found.empty:
            continue
        table = draft.save(f"spread_{kind}", draws if kind == "draws" else found)

        def draw(path: Path, found: pd.DataFrame = found, varied: str = varied) -> str:
            return comparison_plots.plot_spread(found, path, metric=draft.name, varied=varied)

        sections.append(Section(title, note, [draft.figure(f"spread_{kind}", table, draw)]))
    return sections


def _labels(size: int) -> str:
    return f"{size:,} labels" if size else "no labels"
