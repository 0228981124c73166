"""JevBench's mini suite against `taskfit serve`: the packaged model without training, and a run.

    python benchmarks/serve_jevbench.py --run RUN --out results/benchmarks/serve_jevbench.json

JevBench asks one question in many ways (options in another order, alone or beside others, negated,
split) and scores whether the answers agree; whether they are true it does not ask. One server holds
both models. Answers are kept in the work folder, so that the command goes on where it was stopped;
`--domains` takes a part of the suite. Needs the `serve` and `peers` extras.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jevbench

from serve_targets import free_port, started
from taskfit.files import write_json_atomic, write_text_atomic

BASE = "smollm2-135m"
RUN = "run"


def largest_deviations(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest deviation of each relation."""
    found: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        relation = outcome["relation"]
        found[relation] = max(found[relation], outcome["deviation"])
    return dict(found)


def evaluate(model: str, port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the suite on one served model; return its scores."""
    backend = jevbench.systemone(
        f"http://127.0.0.1:{port}/v1/systemone", model=model, per_replica=arguments.concurrency
    )
    # The cache knows a server by its address, and a port is another one each time.
    backend.name = f"taskfit:{model}"
    begun = time.perf_counter()
    report = jevbench.evaluate(
        backend,
        suite=arguments.suite,
        domains=arguments.domains,
        cache=arguments.work / "answers",
        progress=True,
    )
    print(report.table(), report.table("group"), sep="\n", flush=True)
    scores, outcomes = report.scores, report.result["outcomes"]
    return {
        "seconds": time.perf_counter() - begun,
        "cases": scores["n_cases"],
        "overall": report.overall,
        "dimensions": scores["pillars"],
        "intervals": scores["ci"],
        "groups": scores["groups"],
        "relations": scores["relations"],
        "largest_deviation": largest_deviations(outcomes),
        "errors": len(report.errors),
        "first_errors": [str(error)[:300] for error in report.errors[:3]],
    }


def interval(bounds: Sequence[float] | None) -> str:
    """Return an interval in per cent."""
    return "" if bounds is None else f" ({100 * bounds[0]:.0f}-{100 * bounds[1]:.0f})"


def share(value: float | None) -> str:
    """Return a score in per cent."""
    return "not scored" if value is None else f"{100 * value:.1f}"


def page(record: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    models = record["models"]
    heads = [f"{name}, % (95 %)" for name in models]
    lines = [
        "# JevBench against `taskfit serve`",
        "",
        "Made by `python benchmarks/serve_jevbench.py`; every relation stands in the JSON file "
        f"beside it. Suite {record['suite']}"
        + (f", domains {', '.join(record['domains'])}" if record["domains"] else "")
        + f", {next(iter(models.values()))['cases']} cases. {BASE} answers by prompt, untrained; "
        f"`{RUN}` is a run that was fitted on another question ({record['run']}), asked the "
        "suite's questions by prompt. Coherence, not accuracy: what contradicts itself loses.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(models),
    ]
    rows = [("overall", "overall", None)]
    rows += [(d["id"], d["title"], d["id"]) for d in jevbench.list_dimensions()]
    for key, title, dimension in rows:
        cells = []
        for found in models.values():
            value = found["overall"] if dimension is None else found["dimensions"].get(dimension)
            cells.append(f"{share(value)}{interval(found['intervals'].get(key))}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "| group | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for group in jevbench.list_groups():
        cells = [share(found["groups"].get(group["id"])) for found in models.values()]
        lines.append(f"| {group['dimension']}: {group['title']} | " + " | ".join(cells) + " |")
    lines += ["", "Largest change of a probability by what should not matter:", ""]
    lines += ["| relation | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for relation in jevbench.list_relations():
        if relation["dimension"] not in ("REP", "BAT"):
            continue
        name = relation["name"]
        found_all = [found["largest_deviation"].get(name) for found in models.values()]
        cells = ["" if value is None else f"{value:.1e}" for value in found_all]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Serve, evaluate, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--suite", default="jevbench-mini")
    parser.add_argument("--domains", nargs="+")
    parser.add_argument("--models", nargs="+", choices=[BASE, RUN], default=[BASE, RUN])
    parser.add_argument("--concurrency", type=int, default=1, help="requests at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/serve-jevbench"))
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown page stands beside it")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    port, run = free_port(), arguments.run.resolve()
    words = [sys.executable, "-m", "taskfit", "serve", f"{RUN}={run}", "--model", BASE]
    words += ["--port", str(port), "--log", "warning"]
    log = arguments.work / "server.log"
    with started(words, port=port, ready="/readyz", log=log, threads=arguments.threads):
        models = {model: evaluate(model, port, arguments) for model in arguments.models}
    from machine import describe
    from peer_contender import versions

    record = {
        "machine": describe(),
        "versions": versions(),
        "suite": arguments.suite,
        "domains": arguments.domains,
        "concurrency": arguments.concurrency,
        "run": json.loads((run / "result.json").read_text("utf-8"))["task"],
        "models": models,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(arguments.out, record)
        write_text_atomic(arguments.out.with_suffix(".md"), page(record))


if __name__ == "__main__":
    main()
