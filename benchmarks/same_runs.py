"""Whether a change of the code left tiny runs of every kind as they were, byte for byte.

    python benchmarks/same_runs.py --write before.json    # at the commit before the change
    python benchmarks/same_runs.py --check before.json    # after it

Each run fits a tiny random model through the command line and predicts another table. What is
compared: all saved tensors (by hash), the loss of every step, the test predictions and the
predicted file (by hash of their values), and the metrics. Times and memory are left out. Bytes are
those of one machine: written and checked on two kinds of processor they may differ.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from taskfit.cli.main import app

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "eval_every_steps": 6}
ADAPTER = {"lora_rank": 4, "layers": "all"}
HALF = {"lora_rank": 4, "layers": "half"}
NOT_TRAINED = ("in_context", "probe", "knn", "tfidf")
# Name -> settings beside model and data.
CASES: dict[str, dict[str, Any]] = {
    "in_context": {"method": {"name": "in_context", "calibration": "contextual"}},
    "label_words": {"method": {"name": "label_words"}, "adapter": ADAPTER},
    "label_words, all weights": {"method": {"name": "label_words"}, "adapter": {"weights": "full"}},
    "head": {"method": {"name": "head", "start": "probe"}, "adapter": HALF},
    "head, temperature": {
        "method": {"name": "head", "start": "zero"},
        "adapter": ADAPTER,
        "calibration": {"temperature": True},
    },
    "label_text": {"method": {"name": "label_text"}, "adapter": HALF},
    "distill": {"method": {"name": "distill"}, "adapter": ADAPTER},
    "probe": {"method": {"name": "probe"}},
    "knn": {"method": {"name": "knn", "retriever": "model"}},
    "tfidf": {"method": {"name": "tfidf"}},
    "questions": {"method": {"name": "label_words"}, "adapter": ADAPTER, "task": "questions"},
    "sft": {"method": {"name": "sft"}, "adapter": ADAPTER, "rows": "sft"},
    "dpo": {"method": {"name": "dpo"}, "adapter": ADAPTER, "rows": "dpo"},
}
QUESTIONS = {
    "name": "toy",
    "text": ["text"],
    "questions": [
        {
            "name": "mood",
            "ask": "Is it good?",
            "kind": "choice",
            "label": "label",
            "options": ["good", "bad"],
        },
        {"name": "sure", "ask": "Are you sure?", "kind": "yes_no"},
    ],
}
METRICS = ("accuracy", "mcc", "macro_f1", "log_loss", "brier", "ece", "loss", "perplexity")


def write_inputs(folder: Path) -> None:
    """Write model and tables."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tiny.tiny_model("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count, offset in (("train", 60, 0), ("test", 30, 60), ("new", 20, 90)):
        examples = tiny.toy_examples(count, offset=offset)
        table = pd.DataFrame({"text": e.texts["text"], "label": e.label} for e in examples)
        table["sure"] = ["yes" if i % 3 else "no" for i in range(count)]
        table.to_csv(folder / f"{name}.csv", index=False)
        rows = [
            {"prompt": row.text, "completion": row.label, "chosen": row.label, "rejected": "maybe"}
            for row in table.itertuples()
        ]
        for kind, keys in (
            ("sft", ["prompt", "completion"]),
            ("dpo", ["prompt", "chosen", "rejected"]),
        ):
            lines = [json.dumps({key: row[key] for key in keys}) for row in rows]
            (folder / f"{name}-{kind}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "questions.yaml").write_text(yaml.safe_dump(QUESTIONS, sort_keys=False))


def settings_of(case: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings file of a case."""
    rows = case.get("rows")
    suffix = f"-{rows}.jsonl" if rows else ".csv"
    data: dict[str, Any] = {
        "train": str(folder / f"train{suffix}"),
        "tests": {"test": str(folder / f"test{suffix}")},
        "validation_fraction": 0.2,
    }
    found: dict[str, Any] = {
        "seed": 3,
        "data": data,
        "model": {"name": str(folder / "model"), "dtype": "float32", "compile": "off"},
        "training": TRAINING,
    }
    found |= {key: case[key] for key in ("method", "adapter", "calibration") if key in case}
    if case["method"]["name"] in NOT_TRAINED:
        del found["training"]
    if case.get("task") == "questions":
        found["task"] = {"name": str(folder / "questions.yaml")}
    elif not rows:
        data["label"] = "label"
        data["text"] = ["text"]
    return found


def call(*arguments: str) -> None:
    """Run a command of the command line.

    Raises:
        RuntimeError: If it does not end well.
    """
    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        raise RuntimeError(f"taskfit {' '.join(arguments)}\n{result.output}") from result.exception


def digest(parts: Iterable[bytes]) -> str:
    """Return a short hash."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def facts_of(run: Path, predicted: Path | None) -> dict[str, Any]:
    """Return what a run left that does not hang on the clock."""
    facts: dict[str, Any] = {}
    for path in sorted(run.rglob("*.safetensors")):
        if "checkpoints" in path.parts:
            continue
        tensors = load_file(path)
        content = [
            part
            for key in sorted(tensors)
            for part in (
                key.encode(),
                tensors[key].contiguous().view(torch.uint8).numpy().tobytes(),
            )
        ]
        facts[path.relative_to(run).as_posix()] = digest(content)
    for path in sorted(run.rglob("*.parquet")):
        facts[path.relative_to(run).as_posix()] = table_digest(pd.read_parquet(path))
    log = run / "metrics.jsonl"
    if log.is_file():
        records = [json.loads(line) for line in log.read_text().splitlines()]
        facts["losses"] = [record["loss"] for record in records if record.get("loss") is not None]
    facts["metrics"] = dict(sorted(metrics_of(json.loads((run / "result.json").read_text()))))
    if predicted is not None:
        facts["predicted"] = table_digest(pd.read_csv(predicted))
    return facts


def table_digest(table: pd.DataFrame) -> str:
    """Return a hash of a table's values, but for ids (which name files) and order of columns."""
    return digest(
        part
        for name in sorted(set(table.columns) - {"id"})
        for part in (name.encode(), table[name].to_json().encode())
    )


def metrics_of(tree: object, path: str = "") -> Iterable[tuple[str, float]]:
    """Yield the metrics of a result by their place in it."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key in METRICS and isinstance(value, float):
            yield f"{path}{key}", value
        yield from metrics_of(value, f"{path}{key}.")


def run_cases(names: Iterable[str]) -> dict[str, Any]:
    """Run the cases in a folder that is deleted afterwards."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TASKFIT_CACHE"] = str(folder / "cache")
        write_inputs(folder)
        for case in names:
            settings = settings_of(CASES[case], folder)
            path = folder / "settings.yaml"
            path.write_text(yaml.safe_dump(settings))
            run = folder / "runs" / case.replace(" ", "-").replace(",", "")
            call("fit", "--config", str(path), "--out", str(run))
            predicted = None
            if "rows" not in CASES[case]:
                predicted = folder / "predicted.csv"
                call("predict", str(run), str(folder / "new.csv"), "-o", str(predicted))
            found[case] = facts_of(run, predicted)
            if predicted is not None:
                predicted.unlink()
            print(f"{case}: {len(found[case])} facts", flush=True)
    return found


def differences(before: object, after: object, path: str = "") -> Iterable[str]:
    """Yield where two results differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{path}/{key}")
    elif before != after:
        yield f"{path}: {before} before, {after} after"


def main() -> None:
    """Write the facts, or compare them with earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):
        found = run_cases(arguments.only)
    if arguments.write is not None:
        arguments.write.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.check is not None:
        stored = json.loads(arguments.check.read_text())
        before = {case: stored[case] for case in arguments.only}
        # By way of JSON, as what was stored went.
        changed = list(differences(before, json.loads(json.dumps(found))))
        print("\n".join(changed) or "the same")
        raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
