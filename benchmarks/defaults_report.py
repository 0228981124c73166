"""What the records of `defaults.py` say: tables, the goals of the defaults, and what made them.

Legend: N test texts of a data set, B bootstrap resamples, C classes. A cell is a data set at one
size; within it every contender has seen the same training tables, one a seed, and the same test.

Intervals are of a paired bootstrap over test texts. A resample draws the N texts once and takes
with each all its predictions, of every seed and contender and at every size, so that differences
between contenders and means over cells are resampled as they were measured. The training tables
are not drawn again: their share of the noise is in no interval.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DEFAULT, TFIDF, SETFIT = "default", "tfidf", "setfit"
PROBES = ("probe", "probe-minilm")
NUM_RESAMPLES = 1000
MARGIN = 0.02  # how far below the best probe the default may be
MEASURES = ("mcc", "accuracy", "log_loss", "seconds", "cpu_seconds")


def cached_seconds(record: Record) -> float:
    """Return what a run would have taken in addition without cached features; 0 for others."""
    # Records of earlier states of the code have the second name.
    return float(record.get("cached_seconds", record.get("spared_seconds", 0.0)))


def with_cached(record: Record) -> Record:
    """Return a record whose processor seconds count what lay in the feature cache, as one core."""
    return {**record, "cpu_seconds": record["cpu_seconds"] + cached_seconds(record)}


def mcc_resamples(gold: IntArray, predicted: IntArray, weights: FloatArray) -> FloatArray:
    """Return the multi-class MCC (Gorodkin 2004) of each resample, (B,).

    As scikit-learn's `matthews_corrcoef` with sample weights, all resamples at once.

    Args:
        gold: Right labels by index, (N,).
        predicted: Predicted labels by index, (N,); -1 where there is no answer.
        weights: How often each resample has each text, (B, N).
    """
    classes = np.unique(np.concatenate((gold, predicted)))
    total = weights.sum(axis=1)
    right = weights @ (gold == predicted)
    truly = weights @ (gold[:, None] == classes)
    claimed = weights @ (predicted[:, None] == classes)
    covariance = right * total - (truly * claimed).sum(axis=1)
    product = (total**2 - (truly**2).sum(axis=1)) * (total**2 - (claimed**2).sum(axis=1))
    varies = product > 0
    return np.where(varies, covariance / np.sqrt(np.where(varies, product, 1.0)), 0.0)


def resamples_of(data: str, num_texts: int, *, num_resamples: int = NUM_RESAMPLES) -> FloatArray:
    """Return the resamples of a data set's test texts, (B, N): the same ones at every size."""
    generator = np.random.default_rng(zlib.crc32(data.encode()))
    drawn = generator.multinomial(num_texts, np.full(num_texts, 1 / num_texts), num_resamples)
    return drawn.astype(np.float64)


class Cell:
    """All records of one data set at one size, of the seeds that the default has.

    Attributes:
        data: Name of the data set.
        size: Nominal number of labels.
        seeds: Of the default's records.
        records: Contender -> its records in the order of the seeds, if it has them all.
    """

    def __init__(self, data: str, size: int, found: Sequence[Record]) -> None:
        """Sort the records.

        Raises:
            ValueError: If two records were measured on different test texts.
        """
        self.data, self.size, self._found = data, size, found
        by_name: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in map(with_cached, found):
            if record["gold"] != found[0]["gold"]:
                names = f"{record['contender']} and {found[0]['contender']}"
                raise ValueError(f"{data} with {size} labels: {names} have other test sets.")
            by_name[record["contender"]][record["seed"]] = record
        self.seeds = sorted(by_name.get(DEFAULT, {}))
        self.records = {
            name: [records[seed] for seed in self.seeds]
            for name, records in by_name.items()
            if self.seeds and records.keys() >= set(self.seeds)
        }
        self._resampled: dict[str, FloatArray] = {}

    def shared_with(self, contender: str) -> "Cell | None":
        """Return the same cell of the seeds that a contender has, too; None where it has none."""
        seeds = {record["seed"] for record in self._found if record["contender"] == contender}
        shared = [record for record in self._found if record["seed"] in seeds & set(self.seeds)]
        return Cell(self.data, self.size, shared) if shared else None

    def mean(self, contender: str, measure: str) -> float:
        """Return the mean over seeds of a measure."""
        return float(np.mean([record[measure] for record in self.records[contender]]))

    def best(self, among: Iterable[str]) -> str | None:
        """Return the contender with the highest mean MCC; the first of equal ones."""
        names = [name for name in among if name in self.records]
        return max(names, key=lambda name: self.mean(name, "mcc"), default=None)

    def resampled(self, contender: str) -> FloatArray:
        """Return the mean over seeds of the MCC of each resample, (B,)."""
        if contender not in self._resampled:
            records = self.records[contender]
            gold = np.array(records[0]["gold"])
            weights = resamples_of(self.data, len(gold))
            each = [mcc_resamples(gold, np.array(r["predicted"]), weights) for r in records]
            self._resampled[contender] = np.mean(each, axis=0)
        return self._resampled[contender]

    def difference(self, other: str | None) -> dict[str, Any] | None:
        """Return the default's MCC minus another's, with its interval; None without the other."""
        if other is None or other not in self.records:
            return None
        return {"other": other, **mean_difference([(self, other)])}


def mean_difference(pairs: Sequence[tuple[Cell, str]]) -> dict[str, float]:
    """Return the mean over cells of the default's MCC minus the other's, with its interval."""
    gains = [cell.mean(DEFAULT, "mcc") - cell.mean(name, "mcc") for cell, name in pairs]
    draws = [cell.resampled(DEFAULT) - cell.resampled(name) for cell, name in pairs]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return {"gain": float(np.mean(gains)), "low": float(low), "high": float(high)}


def cells_of(records: Iterable[Record]) -> list[Cell]:
    """Return the cells that the default has records of, small ones first."""
    found: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for record in records:
        found[record["size"], record["data"]].append(record)
    cells = [Cell(data, size, some) for (size, data), some in sorted(found.items())]
    return [cell for cell in cells if cell.seeds]


def size_table(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return a size's means of the contenders that have all cells, and how many others have."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.records))
    held = {name: sum(name in cell.records for cell in cells) for name in names}
    rows = [
        {
            "contender": name,
            **{m: float(np.mean([cell.mean(name, m) for cell in cells])) for m in MEASURES},
            "worst": min(cell.mean(name, "mcc") for cell in cells),
            "slowest": max(r["seconds"] for cell in cells for r in cell.records[name]),
        }
        for name in names
        if held[name] == len(cells)
    ]
    return {
        "cells": len(cells),
        "runs": sum(len(cell.seeds) for cell in cells),
        "rows": sorted(rows, key=lambda row: -float(row["mcc"])),
        "partial": {name: n for name, n in held.items() if n < len(cells)},
    }


def cell_row(cell: Cell) -> dict[str, Any]:
    """Return what the default is in one cell, beside TF-IDF, the best probe and the best at all."""
    against = {
        "tfidf": cell.difference(TFIDF),
        "probe": cell.difference(cell.best(PROBES)),
        "best": cell.difference(cell.best(cell.records)),
    }
    marks = []
    for key, margin, text in (
        ("tfidf", 0.0, "below TF-IDF"),
        ("probe", MARGIN, "over .02 below probe"),
    ):
        found = against[key]
        if found is not None and found["gain"] < -margin:
            marks.append(text + (" (clearly)" if found["high"] < -margin else ""))
    chosen = Counter(chosen_method(record) for record in cell.records[DEFAULT])
    return {
        "data": cell.data,
        "size": cell.size,
        "labels": cell.records[DEFAULT][0]["num_labels"],
        "num_test": len(cell.records[DEFAULT][0]["gold"]),
        "seeds": cell.seeds,
        "default_is": dict(chosen),
        "against": against,
        "marks": marks,
        "contenders": {
            name: {m: [record[m] for record in records] for m in MEASURES}
            for name, records in cell.records.items()
        },
    }


def chosen_method(record: Record) -> str:
    """Return which method a run came to, and the encoder that it is averaged with if any."""
    blend = record["settings"].get("method", {}).get("blend")
    return f"{record['method']} + {blend}" if blend else str(record["method"])


def made_by(records: Sequence[Record]) -> dict[str, Any]:
    """Return what the records were made by and on, each with its number of records."""

    def count(values: Iterable[str]) -> dict[str, int]:
        return dict(Counter(values).most_common())

    def machine(record: Record) -> str:
        found = record["machine"]
        return f"{found['processor']}, {found['cores']} cores, {found['system']}"

    versions: dict[str, Counter[str]] = defaultdict(Counter)
    codes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        side = "SetFit's" if record["contender"] == SETFIT else "ours"
        versions[side][", ".join(f"{k} {v}" for k, v in record["versions"].items())] += 1
        codes[record["contender"]].add(record["code"])
    return {
        "records": len(records),
        "commands": count(record["command"] for record in records),
        "machines": count(machine(record) for record in records),
        "threads": count(str(record["threads"]) for record in records),
        "versions": {side: dict(found.most_common()) for side, found in versions.items()},
        "code": {name: sorted(found) for name, found in codes.items()},
        "load": float(np.median([record["load"] for record in records])) if records else 0.0,
    }


def goals_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what the default is to reach: the goal, whether it does, and the figures.

    `reached` is None where a contender that the goal names was not measured.
    """
    chosen = {
        "tfidf": [(c, TFIDF) for c in cells if TFIDF in c.records],
        "probe": [(c, name) for c in cells if (name := c.best(PROBES)) is not None],
        "best": [(c, name) for c in cells if (name := c.best(c.records)) is not None],
        # It is slow, so it need not have all seeds.
        "setfit": [(s, SETFIT) for c in cells if (s := c.shared_with(SETFIT)) is not None],
    }
    mean = {key: mean_difference(pairs) if pairs else None for key, pairs in chosen.items()}

    def everywhere(key: str, margin: float) -> tuple[bool | None, str]:
        gains = [(c.mean(DEFAULT, "mcc") - c.mean(name, "mcc"), c) for c, name in chosen[key]]
        short = sorted((g, f"{c.data} {c.size} ({signed(g)})") for g, c in gains if g < -margin)
        told = f"{len(gains) - len(short)} of {len(gains)} cells"
        listed = "; not " + ", ".join(text for _, text in short) if short else ""
        return (not short if gains else None), told + listed

    def on_average(key: str, above: float) -> tuple[bool | None, str]:
        found = mean[key]
        if found is None:
            return None, "0 cells"
        return found["gain"] > above, f"{told_gain(found)} over {len(chosen[key])} cells"

    goals = {
        "At least TF-IDF on every set and size": everywhere("tfidf", 0.0),
        "At least the best probe - .02 on every set and size": everywhere("probe", MARGIN),
        "Above the best probe on average": on_average("probe", 0.0),
        "Within .02 of the best in hindsight on average": on_average("best", -MARGIN),
        "Above SetFit on average, in less time": on_average("setfit", 0.0),
    }
    if chosen["setfit"]:
        reached, told = goals["Above SetFit on average, in less time"]
        for measure, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
            ours, theirs = (
                float(np.mean([c.mean(name, measure) for c, _ in chosen["setfit"]]))
                for name in (DEFAULT, SETFIT)
            )
            told += f", {ours:.0f} {unit} against {theirs:.0f}"
            reached = bool(reached) and ours < theirs
        goals["Above SetFit on average, in less time"] = (reached, told)
    return [{"goal": g, "reached": r, "found": f} for g, (r, f) in goals.items()]


def judge(records: Sequence[Record]) -> dict[str, Any]:
    """Return everything that `page` writes, as plain JSON types."""
    cells = cells_of(records)
    sizes = sorted({cell.size for cell in cells})
    return {
        "goals": goals_of(cells),
        "sizes": {str(s): size_table([c for c in cells if c.size == s]) for s in sizes},
        "cells": [cell_row(cell) for cell in cells],
        "made_by": made_by(records),
    }


def page(judged: Mapping[str, Any]) -> str:
    """Return the study as Markdown."""
    told = {True: "reached", False: "**not reached**", None: "not measured"}
    lines = ["# What `taskfit fit mine.csv` does with no settings", "", "## Goals", ""]
    lines += table(
        ["goal", "", "found"],
        [[g["goal"], told[g["reached"]], g["found"]] for g in judged["goals"]],
    )
    lines += ["", METHOD_NOTE]
    for size, found in judged["sizes"].items():
        lines += ["", *size_lines(size, found)]
    lines += ["", "## Each set and size", ""]
    head = ["set", "labels", "seeds", "the default chose", "MCC"]
    lines += table(
        [*head, "default - TF-IDF", "default - best probe", "default - best", "mark"],
        [cell_cells(row) for row in judged["cells"]],
    )
    names = list(dict.fromkeys(n for row in judged["cells"] for n in row["contenders"]))
    lines += ["", "MCC of every contender, mean over seeds:", ""]
    rows = []
    for row in judged["cells"]:
        found = {n: short(float(np.mean(c["mcc"]))) for n, c in row["contenders"].items()}
        rows.append([row["data"], str(row["labels"]), *(found.get(n, "") for n in names)])
    lines += table(["set", "labels", *names], rows)
    return "\n".join([*lines, "", *made_lines(judged["made_by"])]) + "\n"


METHOD_NOTE = (
    "Intervals are of a paired bootstrap over test texts, with a text's predictions of all seeds "
    "and sizes kept together; the draw of the training table is in none of them. The best probe "
    "and the best contender are chosen by the test itself, which flatters them. Seconds are those "
    "of a whole `fit` with its evaluation, the model loaded anew and cached features counted as if "
    "read again (in CPU seconds by one core); SetFit's are of training and evaluation alone. "
    "Banking77 has 308, 616 and 1,078 labels where the others have 64, 256 and 1,024."
)


def size_lines(size: str, found: Mapping[str, Any]) -> list[str]:
    """Return the table of one size."""
    head = [
        "contender",
        "MCC",
        "accuracy",
        "log loss",
        "worst MCC",
        "seconds",
        "CPU s",
        "slowest s",
    ]
    rows = [
        [
            row["contender"],
            *(short(row[m]) for m in ("mcc", "accuracy", "log_loss", "worst")),
            *(f"{row[m]:.0f}" for m in ("seconds", "cpu_seconds", "slowest")),
        ]
        for row in found["rows"]
    ]
    lines = [f"## {size} labels", "", f"Means over {found['cells']} sets, {found['runs']} runs."]
    lines += ["", *table(head, rows)]
    if found["partial"]:
        some = ", ".join(f"{name} ({n} sets)" for name, n in found["partial"].items())
        lines += ["", f"Not on all sets and seeds: {some}."]
    return lines


def cell_cells(row: Mapping[str, Any]) -> list[str]:
    """Return one cell's row of the table by set and size."""
    several = len(row["default_is"]) > 1
    chosen = ", ".join(f"{m} ({n})" if several else m for m, n in row["default_is"].items())
    gains = []
    for key in ("tfidf", "probe", "best"):
        found = row["against"][key]
        named = key != "tfidf" and found is not None
        gains.append(f"{told_gain(found)}{' ' + found['other'] if named else ''}" if found else "")
    mcc = short(float(np.mean(row["contenders"][DEFAULT]["mcc"])))
    marks = ", ".join(f"**{mark}**" for mark in row["marks"])
    return [row["data"], str(row["labels"]), str(len(row["seeds"])), chosen, mcc, *gains, marks]


def made_lines(made: Mapping[str, Any]) -> list[str]:
    """Return what the records were made by."""
    lines = [f"## What it was made by ({made['records']} records)", ""]
    lines += [f"- {n} records: `{command}`" for command, n in made["commands"].items()]
    lines += [f"- {n} on {machine}" for machine, n in made["machines"].items()]
    lines += [f"- {n} with {threads} threads" for threads, n in made["threads"].items()]
    lines += [f"- Median load of the machine when a run began: {made['load']:.1f}"]
    for side, found in made["versions"].items():
        lines += [f"- {n} with versions ({side}): {text}" for text, n in found.items()]
    mixed = [f"{name} {len(codes)}" for name, codes in made["code"].items() if len(codes) > 1]
    if mixed:
        lines += [f"- Records of several states of taskfit's code: {', '.join(mixed)}"]
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def short(value: float) -> str:
    """Return three digits, without the zero before the point."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return ("+" if value >= 0 else "") + short(value)


def told_gain(found: Mapping[str, float]) -> str:
    """Return a difference with its interval."""
    return f"{signed(found['gain'])} [{signed(found['low'])}, {signed(found['high'])}]"
