"""Does curating instructions help? The same tuning on raw, filtered, deduplicated and few rows.

    export TASKFIT_DATA=...
    python benchmarks/curation.py                 # everything that is not done yet
    python benchmarks/curation.py --prepare       # the data, before parts run side by side
    python benchmarks/curation.py --part 1/2      # every second run, one of two at a time
    python benchmarks/curation.py --only all-0    # one of them
    python benchmarks/curation.py --report        # the tables, of what is done

results/experiments/curation.yaml says what is drawn, curated, trained. Every run is judged on the
same held-out rows: the loss of their answers, row by row, and ROUGE-L of answers of its own. What
was measured of a run is kept in results/experiments/curation as soon as it is there, numbers alone,
so that the command goes on where it was stopped, here or elsewhere; delete what is to run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from experiments import HOME, markdown
from machine import describe, distinct
from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample

SETTINGS = HOME / "curation.yaml"
BASE = "base"
# Each set's folders of `taskfit curate`, one after the other.
CHAIN = ("filtered", "deduplicated", "longest")


def curate(sources: Sequence[Path], out: Path, steps: Sequence[Any], *flags: str) -> list[str]:
    """Run `taskfit curate`, unless its folder is there; return the rows that are left, as lines."""
    if not (out / "data.jsonl").is_file():
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"seed": 0, "steps": list(steps)}, file)
            file.flush()
            command = ["curate", *map(str, sources), "-o", str(out), "--config", file.name, *flags]
            subprocess.run([sys.executable, "-m", "taskfit", *command], check=True)
    return (out / "data.jsonl").read_text(encoding="utf-8").splitlines()


def draw(lines: Sequence[str], num: int, seed: int) -> tuple[list[str], list[str]]:
    """Return lines drawn at random, and the others, both in their order."""
    chosen = set(np.random.default_rng(seed).permutation(len(lines))[:num].tolist())
    parts: tuple[list[str], list[str]] = ([], [])
    for place, line in enumerate(lines):
        parts[place not in chosen].append(line)
    return parts


def write(path: Path, lines: Sequence[str]) -> Path:
    """Write lines into a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def prepare(given: dict[str, Any], work: Path) -> dict[str, Path]:
    """Return the file of each training set, by condition and seed, and of the held-out rows."""
    home = Path(os.environ["TASKFIT_DATA"]) / "instructions"
    rows = curate([home / name for name in given["sources"]], work / "raw", ["empty"])
    held_out, rest = draw(rows, given["held_out"], seed=0)
    sets = {"held_out": write(work / "held_out.jsonl", held_out)}
    rest_file = write(work / "rest.jsonl", rest)
    clear = curate(
        [rest_file], work / "clear", ["overlap"], "--against", f"held={sets['held_out']}"
    )
    sets["all-0"] = write(work / "all.jsonl", draw(clear, given["pool"], seed=0)[0])
    filtered = curate([sets["all-0"]], work / "filtered", given["filters"])
    sets["filtered-0"] = write(work / "filtered.jsonl", filtered)
    few = given["few"]
    unlike = curate([sets["filtered-0"]], work / "deduplicated", given["duplicates"])
    sets["deduplicated-0"] = write(work / "deduplicated.jsonl", unlike)
    top = {"step": "top", "k": few, "by": "tokens"}
    longest = curate([sets["deduplicated-0"]], work / "longest", [top])
    whole = sets["all-0"].read_text(encoding="utf-8").splitlines()
    for seed in range(given["seeds"]["longest"]):
        sets[f"longest-{seed}"] = write(work / "longest.jsonl", longest)
    for seed in range(given["seeds"]["random"]):
        sets[f"random-{seed}"] = write(work / f"random-{seed}.jsonl", draw(whole, few, seed)[0])
    return sets


def steps_of(name: str, work: Path) -> list[dict[str, Any]]:
    """Return what every step of a set's curation left: rows, and tokens."""
    condition = name.rsplit("-", 1)[0]
    folders = CHAIN[: CHAIN.index(condition) + 1] if condition in CHAIN else ()
    cards = [json.loads((work / folder / "card.json").read_text()) for folder in folders]
    return [
        {"step": step["name"], "kept": step["kept"], "tokens": step["histogram"]["tokens"]["row"]}
        for place, card in enumerate(cards)
        for step in card["steps"]
        if place == 0 or step["name"] != "read"
    ]


def fit(name: str, file: Path, given: dict[str, Any], work: Path, flags: Sequence[str]) -> Path:
    """Tune on a file, or go on with it; return the run's folder."""
    folder = work / "runs" / name
    if (folder / "settings.yaml").is_file():
        command = ["fit", "--resume", str(folder)]
    else:
        settings = {**given["settings"], "seed": int(name.rsplit("-", 1)[1])}
        config = work / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = ["fit", str(file), "--config", str(config), "--out", str(folder), *flags]
    if not (folder / "result.json").is_file():
        subprocess.run([sys.executable, "-m", "taskfit", *command], check=True)
    return folder


def judge(folder: Path | None, held_out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Measure a run, or the model as it comes, on the held-out rows, row by row."""
    from taskfit.compare.judge import judge_answers
    from taskfit.data.instructions import read_instructions
    from taskfit.models.load import load_model
    from taskfit.runs.tuning.model import Decoding, TunedModel
    from taskfit.runs.tuning.rows import prompt_of, reference_of
    from taskfit.settings_file import settings_from_dict
    from taskfit.tasks.chat import EncodedText

    if folder is None:
        settings = settings_from_dict(given["settings"])
        tuned = TunedModel(settings, load_model(settings.model))
    else:
        tuned = TunedModel.load(folder, device="auto")
    rows = list(read_instructions(str(held_out)).rows)
    # A row with a question of over 512 tokens has no answer left to judge.
    texts = [text for text in tuned.encode(rows)[0] if isinstance(text, EncodedText)]
    losses = [float(-log_prob) for log_prob in tuned.log_probs(texts)]
    tokens = [int(text.num_learned) for text in texts]
    asked = rows[: given["answered"]]
    decoding = Decoding(max_new_tokens=given["max_new_tokens"])
    answers = tuned.answer([prompt_of(row) for row in asked], decoding)
    scores = [
        judge_answers([answer], [reference_of(row)])["rouge_l"]
        for row, answer in zip(asked, answers, strict=True)
    ]
    words = [len(answer.split()) for answer in answers]
    return {"loss": losses, "tokens": tokens, "rouge_l": scores, "answer_words": words}


def run(
    given: dict[str, Any],
    work: Path,
    records: Path,
    *,
    only: Sequence[str] | None,
    part: tuple[int, int],
    flags: Sequence[str],
) -> None:
    """Tune and judge what is not done."""
    sets = prepare(given, work)
    held_out = sets.pop("held_out")
    # One seed of everything before the second, and small sets first: a report is useful early.
    ordered = sorted(sets, key=lambda name: (name.rsplit("-", 1)[1], sets[name].stat().st_size))
    for place, name in enumerate(only or (BASE, *ordered)):
        file = None if name == BASE else sets[name]
        record = records / f"{name}.json"
        if place % part[1] != part[0] or record.is_file():
            continue
        folder = None if file is None else fit(name, file, given, work, flags)
        found = judge(folder, held_out, given)
        if folder is not None and file is not None:
            result = json.loads((folder / "result.json").read_text())
            found["rows"] = len(file.read_text(encoding="utf-8").splitlines())
            found |= {key: result[key] for key in ("cpu_seconds", "machine")}
            found["trained_tokens"] = result["tokens"]["unique"]
            found["steps"] = steps_of(name, work)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found))
        print(f"{name}: done", flush=True)


def report(out: Path) -> None:
    """Write the tables: each condition, what it is more or less than another, and how it came."""
    records = {p.stem: json.loads(p.read_text()) for p in sorted(out.glob("*.json"))}
    if BASE not in records:
        sys.exit(f"{out} has no {BASE}.json, which all is compared to: run --only {BASE} first.")
    conditions: dict[str, list[dict[str, Any]]] = {}
    for name, record in records.items():
        conditions.setdefault(name.rsplit("-", 1)[0], []).append(record)
    # Of several seeds the mean, row by row: intervals are over rows, not over seeds.
    losses = {name: np.mean([r["loss"] for r in own], axis=0) for name, own in conditions.items()}
    rouge = {name: np.mean([r["rouge_l"] for r in own], axis=0) for name, own in conditions.items()}
    weights = np.array(records[BASE]["tokens"], np.float64)
    summary: dict[str, dict[str, Any]] = {}
    for name in sorted(conditions, key=lambda name: -conditions[name][0].get("rows", 0)):
        own = conditions[name]
        row: dict[str, Any] = {"rows": own[0].get("rows", 0), "seeds": len(own)}
        for cost in ("trained_tokens", "cpu_seconds", "answer_words"):
            row[cost] = float(np.mean([np.mean(r.get(cost, 0)) for r in own]))
        row["loss"] = _mean_of(losses[name], weights)
        row["rouge_l"] = _mean_of(rouge[name])
        row["loss_of_seeds"] = [sum(record["loss"]) / weights.sum() for record in own]
        row["less"] = {
            other: {
                "loss": _mean_of(losses[name] - losses[other], weights),
                "rouge_l": _mean_of(rouge[name] - rouge[other]),
                "loss_by_length": by_length(losses[name] - losses[other], weights),
            }
            for other in compared_to(name)
            if other in conditions
        }
        summary[name] = row
    steps = max((record.get("steps", []) for record in records.values()), key=len)
    machines = distinct(record["machine"] for record in records.values() if "machine" in record)
    whole = {"conditions": summary, "steps": steps, "machines": machines, "reported_on": describe()}
    out.with_suffix(".json").write_text(json.dumps(whole, indent=1))
    text = "# curation\n\nMade by benchmarks/curation.py.\n"
    for title, lines in tables(summary, steps).items():
        text += f"\n## {title}\n\n{markdown(pd.DataFrame(lines).fillna(''))}"
    out.with_suffix(".md").write_text(text)
    print(text)


def compared_to(name: str) -> tuple[str, ...]:
    """Return the conditions that one is compared to: those that are less done, its last step."""
    plain = (BASE, "all", "random")
    if name in plain:
        return plain[: plain.index(name)]
    return (*plain, *CHAIN[: CHAIN.index(name)][-1:])


def by_length(losses: FloatArray, weights: FloatArray) -> dict[str, tuple[float, float, float]]:
    """Return the loss a token over thirds of the rows by their answers' tokens.

    A loss a token over all rows is mostly that of the long ones; in `each row` they count alike.
    """
    found = {"each row": _mean_of(losses / weights)}
    order = np.argsort(weights, kind="stable")
    for part in np.array_split(order, 3):
        title = f"{weights[part].min():.0f} to {weights[part].max():.0f} tokens"
        found[title] = _mean_of(losses[part], weights[part])
    return found


def tables(
    summary: dict[str, dict[str, Any]], steps: Sequence[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table, by its title."""
    scores, differences, lengths = [], [], []
    for name, row in summary.items():
        counts = {k: f"{row[k]:,.0f}" for k in ("rows", "trained_tokens", "seeds", "cpu_seconds")}
        scores.append(
            {
                "condition": name,
                **counts,
                "loss": _cell(row["loss"], ""),
                "by seed": ", ".join(f"{loss:.3f}" for loss in row["loss_of_seeds"]),
                "ROUGE-L": _cell(row["rouge_l"], ""),
                "words an answer": f"{row['answer_words']:.0f}",
            }
        )
        for other, less in row["less"].items():
            pair = {"condition": name, "less": other}
            loss, rouge = _cell(less["loss"], "+"), _cell(less["rouge_l"], "+")
            differences.append({**pair, "loss": loss, "ROUGE-L": rouge})
            lengths.append(pair | {k: _cell(v, "+") for k, v in less["loss_by_length"].items()})
    left = [{k: f"{v:,}" if isinstance(v, int) else v for k, v in one.items()} for one in steps]
    return {
        "scores": scores,
        "differences": differences,
        "by length of answer": lengths,
        "steps": left,
    }


def _mean_of(values: FloatArray, weights: FloatArray | None = None) -> tuple[float, float, float]:
    """Return a mean over rows with its 95 % interval; a loss is one of tokens, summed by row."""
    weights = np.ones(len(values)) if weights is None else weights

    def mean(rows: IntArray) -> FloatArray:
        return np.asarray(values[rows].sum(axis=-1) / weights[rows].sum(axis=-1))

    low, high = percentile_interval(resample(mean, len(values), np.random.default_rng(0)))
    return float(mean(np.arange(len(values)))), float(low), float(high)


def _cell(found: tuple[float, float, float], sign: str) -> str:
    """Return a mean and its interval as text; `sign` is + where 0 is no difference."""
    value, low, high = (f"{number:{sign}.3f}" for number in found)
    return f"{value} ({low} to {high})"


def main() -> None:
    """Run a part, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=SETTINGS)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments/curation"))
    parser.add_argument("--part", default="1/1", help="such as 1/2")
    parser.add_argument("--only", nargs="+", help="these runs, in this order: base longest-0")
    parser.add_argument("--model", help="another model than the packaged one")
    parser.add_argument("--set", action="append", default=[], help="further settings of the runs")
    parser.add_argument("--prepare", action="store_true", help="curate, and train nothing")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=HOME / "curation", help="records and tables")
    own = parser.parse_args()
    if own.report:
        report(own.out)
        return
    given = yaml.safe_load(own.config.read_text(encoding="utf-8"))
    runs = {BASE, *(f"{name}-{seed}" for name, n in given["seeds"].items() for seed in range(n))}
    if unknown := {*(own.only or ())} - runs:
        parser.error(f"--only {' '.join(sorted(unknown))}: there are {', '.join(sorted(runs))}")
    flags = [x for key in own.set for x in ("--set", key)]
    if own.model:
        flags += ["--model", own.model]
        given["settings"]["model"]["name"] = own.model
    if own.prepare:
        prepare(given, own.work)
        return
    first, of = map(int, own.part.split("/"))
    part = (first - 1, of)
    run(given, own.work, own.out, only=own.only, part=part, flags=flags)


if __name__ == "__main__":
    main()
