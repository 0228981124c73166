"""Judge the contenders of `peers.py`: quality with intervals, time ratios, and the two claims.

A view is an evaluation set, or several pooled: the first one (in domain) by its own name, all
others together as `out of domain`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peer_data import FloatArray, PeerData, read_data
from peer_prepare import DATA_SETS
from taskfit.stats import evaluate_probabilities
from taskfit.stats.paired import paired_bootstrap

REFERENCE = "taskfit default"
OTHERS = "out of domain"
# The share of the best peer's time in which our default should reach its quality.
SHARE = 1 / 3
METRICS = ("accuracy", "mcc", "macro_f1", "log_loss")

IntArray = NDArray[np.int64]
Predictions = Mapping[str, tuple[IntArray, FloatArray]]


def views(data: PeerData, stored: Path) -> Predictions:
    """Return gold labels and probabilities of each view."""
    with np.load(stored) as arrays:
        found = {name: np.asarray(arrays[name], np.float64) for name in data.tests}
    first, *others = data.tests
    parts = {first: [first]} | ({OTHERS: others} if others else {})
    return {
        view: (
            np.concatenate([np.array(data.tests[name].gold) for name in names]),
            np.concatenate([found[name] for name in names]),
        )
        for view, names in parts.items()
    }


def evaluate_job(data: PeerData, stored: Path) -> dict[str, Any]:
    """Return metrics with 95 % intervals of every view.

    Raises:
        ValueError: If a contender gave something else than probabilities of the right shape.
    """
    evaluations = {}
    for view, (gold, probabilities) in views(data, stored).items():
        if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"{stored}: the probabilities of {view} do not sum to 1.")
        found = evaluate_probabilities(probabilities, gold, labels=data.labels)
        evaluations[view] = {
            "num_examples": found.num_examples,
            **{metric: getattr(found, metric) for metric in METRICS},
            "intervals": {metric: list(found.intervals[metric]) for metric in METRICS},
        }
    return evaluations


def work_seconds(result: Mapping[str, Any], kind: str = "seconds") -> float:
    """Return the seconds of training and evaluation, with imports and weights loaded."""
    return float(result[kind].get("training", 0.0) + result[kind].get("evaluation", 0.0))


def compare(results: Sequence[dict[str, Any]], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Compare the results of each data set.

    Args:
        results: As `peers.run_job` stores them.
        folders: Folder of each data set, with its data and the folders of its jobs.

    Returns:
        The results, and by data set the rows of its table and its verdicts by view.
    """
    tables = {}
    for set_name, folder in folders.items():
        found = [r for r in results if f"{r['data']}:{r['num_labels']}" == set_name]
        if not found:
            continue
        metric = DATA_SETS[found[0]["data"]].metric
        data = read_data(folder / "data")
        predicted = {
            r["contender"]: {
                view: probabilities.argmax(axis=1)
                for view, (_, probabilities) in views(data, stored_of(folder, r)).items()
            }
            for r in found
        }
        gold = {v: g for v, (g, _) in views(data, stored_of(folder, found[0])).items()}
        tables[set_name] = {
            "metric": metric,
            "num_train": found[0]["num_train"],
            "epochs": found[0]["options"]["epochs"],
            "views": {v: len(g) for v, g in gold.items()},
            "rows": table_rows(found, metric),
            "verdicts": {
                v: verdict(found, metric, v, gold[v], {n: p[v] for n, p in predicted.items()})
                for v in gold
            },
        }
    return {"tables": tables, "results": list(results)}


def stored_of(folder: Path, result: Mapping[str, Any]) -> Path:
    """Return the file of a result's probabilities."""
    return folder / slug(result["contender"]) / "probabilities.npz"


def slug(contender: str) -> str:
    """Return a contender's name as a folder's name."""
    return "".join(c if c.isalnum() else "-" for c in contender.lower())


def table_rows(found: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return a row a contender, ours first, the fastest last of each side."""
    reference = [work_seconds(r) for r in found if r["contender"] == REFERENCE]
    rows = []
    for result in found:
        seconds = work_seconds(result)
        rows.append(
            {
                "contender": result["contender"],
                "side": result["side"],
                "quality": {v: e[metric] for v, e in result["evaluations"].items()},
                "interval": {v: e["intervals"][metric] for v, e in result["evaluations"].items()},
                "seconds": seconds,
                "training_seconds": result["seconds"].get("training", 0.0),
                "evaluation_seconds": result["seconds"].get("evaluation", 0.0),
                "cpu_seconds": work_seconds(result, "cpu_seconds"),
                "process_seconds": result["process_seconds"],
                "peak_memory_mb": result["peak_memory_bytes"] / 1e6,
                "ratio_to_default": seconds / reference[0] if reference else None,
            }
        )
    return sorted(rows, key=lambda row: (row["side"], -float(row["seconds"])))


def verdict(
    found: Sequence[dict[str, Any]],
    metric: str,
    view: str,
    gold: IntArray,
    predicted: Mapping[str, IntArray],
) -> dict[str, Any]:
    """Return what one view says of the two claims; an empty one if a side is missing.

    `better` compares the figures as they are; `clearly` says that the 95 % interval of the paired
    difference lies on one side of zero.
    """

    def quality(result: Mapping[str, Any]) -> float:
        return float(result["evaluations"][view][metric])

    def best(side: str) -> dict[str, Any] | None:
        rows = [r for r in found if r["side"] == side]
        return max(rows, key=lambda r: (quality(r), -work_seconds(r)), default=None)

    def difference(one: str, other: str) -> tuple[float, tuple[float, float]]:
        return paired_bootstrap(gold, predicted[one], predicted[other], metric=metric)

    ours, peer = best("ours"), best("peer")
    if ours is None or peer is None:
        return {}
    duels = []
    for result in found:
        if result["side"] == "peer":
            gain, (low, high) = difference(result["contender"], ours["contender"])
            faster = work_seconds(result) < work_seconds(ours)
            duels.append(
                {
                    "peer": result["contender"],
                    "difference": gain,
                    "interval": [low, high],
                    "ratio_to_our_best": work_seconds(result) / work_seconds(ours),
                    "faster": faster,
                    "better": quality(result) > quality(ours),
                    "better_and_faster": quality(result) > quality(ours) and faster,
                    "clearly_better_and_faster": low > 0 and faster,
                }
            )
    answer: dict[str, Any] = {
        "our_best": ours["contender"],
        "best_peer": peer["contender"],
        "duels_with_our_best": duels,
        "nobody_better_and_faster": not any(d["better_and_faster"] for d in duels),
        "nobody_clearly_better_and_faster": not any(d["clearly_better_and_faster"] for d in duels),
    }
    reaching = [r for r in found if r["side"] == "ours" and quality(r) >= quality(peer)]
    fastest = min(reaching, key=work_seconds, default=None)
    answer["our_fastest_to_reach_best_peer"] = fastest and {
        "contender": fastest["contender"],
        "share_of_its_time": work_seconds(fastest) / work_seconds(peer),
    }
    default = next((r for r in found if r["contender"] == REFERENCE), None)
    if default is not None:
        gain, (low, high) = difference(REFERENCE, peer["contender"])
        share = work_seconds(default) / work_seconds(peer)
        reach = quality(default) >= quality(peer)
        answer |= {
            "default_minus_best_peer": gain,
            "interval": [low, high],
            "default_share_of_best_peers_time": share,
            "default_reaches_best_peer": reach,
            "default_not_clearly_below_best_peer": high >= 0,
            "default_reaches_best_peer_in_a_third": reach and share <= SHARE,
            "default_not_clearly_below_in_a_third": high >= 0 and share <= SHARE,
        }
    return answer


def page(compared: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown."""
    machine = compared["machine"]
    lines = [
        "# Taskfit against its alternatives",
        "",
        "Made by `python benchmarks/peers.py`; settings, versions and every figure stand in the "
        f"JSON file beside it. {machine['processor']}, {compared['threads']} threads, one "
        "contender after the other. Quality with its 95 % bootstrap interval. Seconds are "
        "wall-clock, training and evaluation, with imports and weights loaded; `x default` is "
        f"their ratio to `{REFERENCE}`. Memory is the peak of the whole process.",
        "",
        "Language models: LoRA of rank 8 on all linear layers, 16 rows a step, a rate of 0.0005, "
        "the same epochs for all and nothing tuned for any (DecisionFormer also with its own rate "
        "and options in one order). Transformers and TRL have bfloat16 weights, autocast and "
        "float32 adapters, DecisionFormer bfloat16; SetFit and our encoder float32, SetFit 20 "
        "pairs a text. TRL's labels of several tokens are generated, and looked up by their "
        "likelihoods where the text is no label. Our training seconds are all of `fit`, with "
        "reading, encoding and the run folder.",
        "",
    ]
    for set_name, table in compared["tables"].items():
        lines += [*set_table(set_name, table), "", *verdict_lines(table), ""]
    if compared["failed"]:
        lines += [f"Failed: {'; '.join(compared['failed'])}.", ""]
    return "\n".join(lines)


def set_table(set_name: str, table: Mapping[str, Any]) -> list[str]:
    """Return the lines of one data set's table."""
    names = list(table["views"])
    sizes = ", ".join(f"{v} n = {n}" for v, n in table["views"].items())
    head = ["contender", *(f"{table['metric']} {v}" for v in names)]
    head += ["training s", "evaluation s", "seconds", "x default", "CPU s", "memory MB"]
    lines = [
        f"## {set_name}",
        "",
        f"{table['num_train']} labelled examples, {table['epochs']} epochs; {sizes}.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in table["rows"]:
        cells = [row["contender"]]
        for v in names:
            low, high = row["interval"][v]
            cells.append(f"{row['quality'][v]:.3f} ({low:.3f}-{high:.3f})")
        cells += [f"{row[k]:.1f}" for k in ("training_seconds", "evaluation_seconds", "seconds")]
        ratio = row["ratio_to_default"]
        cells += ["" if ratio is None else f"{ratio:.2f}"]
        cells += [f"{row[k]:.0f}" for k in ("cpu_seconds", "peak_memory_mb")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def verdict_lines(table: Mapping[str, Any]) -> list[str]:
    """Return the two claims by view, as computed."""
    said = ("no", "yes")
    head = ["view", "our best", "best peer", "nobody better and faster (clearly)"]
    head += ["default - best peer (95 %)", "default's share of its time"]
    head += ["reached in a third (or not clearly below)", "our fastest row that reaches it"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for view, found in table["verdicts"].items():
        if "default_share_of_best_peers_time" not in found:
            continue
        low, high = found["interval"]
        cells = [
            view,
            found["our_best"],
            found["best_peer"],
            f"{said[found['nobody_better_and_faster']]} "
            f"({said[found['nobody_clearly_better_and_faster']]})",
            f"{found['default_minus_best_peer']:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{found['default_share_of_best_peers_time']:.2f}",
            f"{said[found['default_reaches_best_peer_in_a_third']]} "
            f"({said[found['default_not_clearly_below_in_a_third']]})",
        ]
        fastest = found["our_fastest_to_reach_best_peer"]
        cells.append(
            f"{fastest['contender']}, {fastest['share_of_its_time']:.2f} of its time"
            if fastest
            else "none"
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines
