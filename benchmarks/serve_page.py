"""What `serve.py` concludes from its figures, and the page that shows them."""

from collections.abc import Mapping
from typing import Any

from serve_targets import OURS, SERVERS

# At 32 clients: how many times our rate is to be that of each.
GOALS = {"fastapi": 5.0, "litserve": 2.0, "transformers": 5.0, "decisionformer": 3.0}
AT = 32
ONE_QUESTION_MS = 25.0
EIGHT_TO_ONE = 1.5
HEAD = "server | wire | clients | answers/s | p50 ms | p95 ms | p99 ms | not 200 | off by | MB"
Results = Mapping[str, Mapping[str, Any]]


def levels(result: Mapping[str, Any], clients: int, name: str) -> list[float]:
    """Return a figure of a server at so many clients over each of its wires."""
    found = result["levels"].items()
    return [seen[name] for level, seen in found if level.endswith(f" {clients}") and name in seen]


def compare(results: Results) -> dict[str, Any]:
    """Return ratios and what is reached of the goals, over the best wire of each server.

    What was not measured is left out.
    """
    goals: list[dict[str, Any]] = []
    ours = results.get("ours", {"levels": {}})

    def goal(what: str, value: float, limit: float, *, least: bool) -> None:
        reached = value >= limit if least else value <= limit
        goals.append({"what": what, "value": value, "goal": limit, "reached": reached})

    peers = {key: results[key] for key in GOALS if key in results}
    for key, peer in peers.items():
        mine, theirs = (levels(found, AT, "per_second") for found in (ours, peer))
        if mine and theirs:
            what = f"rate at {AT} clients, x {SERVERS[key].name}"
            goal(what, max(mine) / max(theirs), GOALS[key], least=True)
    for key, peer in peers.items():
        mine, theirs = (levels(found, 1, "p50_ms") for found in (ours, peer))
        if mine and theirs:
            what = f"p50 of one client, x {SERVERS[key].name}"
            goal(what, min(mine) / min(theirs), 1.0, least=False)
    if own := ours["levels"].get("systemone 1"):
        what = "own question, short state, one client, p50 ms"
        goal(what, own["p50_ms"], ONE_QUESTION_MS, least=False)
    if asked := ours.get("questions"):
        one, eight = asked["1"]["p50_ms"], asked["8"]["p50_ms"]
        goal("eight questions of one state, x one, p50", eight / one, EIGHT_TO_ONE, least=False)
    return {"goals": goals}


def page(record: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    machine, servers = record["machine"], record["servers"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# `taskfit serve` against its alternatives",
        "",
        "Made by `python benchmarks/serve.py`; every figure, the first answer of each server and "
        f"the machine stand in the JSON file beside it. {machine['processor']}, "
        f"{record['threads']} threads each, one server after the other, the load generator in a "
        "process of its own on the same machine.",
        "",
        "One run of label words on the packaged model; its prompt with a text has about "
        f"{record['run']['prompt_tokens']} tokens. FastAPI, LitServe and `transformers serve` have "
        "the merged weights in bfloat16 with the same prompt and words. `decisionformer serve` has "
        "them in a prompt of its own, with a readout of two training steps, so that its answers "
        "mean nothing. `off by` is the largest difference of a probability from `taskfit "
        "predict`'s, over all answers under load.",
        "",
        f"| {HEAD} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _row(SERVERS[key].name, *level.split(), seen=seen)
        for key, result in servers.items()
        for level, seen in result["levels"].items()
    ]
    lines += ["", "Questions in words about one state, one client:", ""]
    lines += ["| server | one, p50 ms | eight, p50 ms | ratio |", "|---|---|---|---|"]
    for key, result in servers.items():
        if asked := result.get("questions"):
            one, eight = (asked[count].get("p50_ms", float("nan")) for count in ("1", "8"))
            lines.append(f"| {SERVERS[key].name} | {one:.1f} | {eight:.1f} | {eight / one:.2f} |")
    if goals := record["goals"]:
        lines += ["", f"Goals of {OURS}:", ""]
        lines += ["| what | here | goal | reached |", "|---|---|---|---|"]
    for g in goals:
        reached = "yes" if g["reached"] else "no"
        lines.append(f"| {g['what']} | {g['value']:.2f} | {g['goal']:g} | {reached} |")
    if record["failed"]:
        lines += ["", f"Did not come up: {', '.join(record['failed'])}."]
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


def _row(server: str, wire: str, clients: str, *, seen: Mapping[str, Any]) -> str:
    times = " | ".join(f"{seen.get(f'p{p}_ms', float('nan')):.1f}" for p in (50, 95, 99))
    wrong = sum(n for status, n in seen["statuses"].items() if status != "200") + seen["lost"]
    off = "" if seen["largest_difference"] is None else f"{seen['largest_difference']:.1e}"
    megabytes = f"{seen['resident_bytes'] / 2**20:.0f}"
    rate = f"{seen['per_second']:.1f}"
    return f"| {server} | {wire} | {clients} | {rate} | {times} | {wrong} | {off} | {megabytes} |"
