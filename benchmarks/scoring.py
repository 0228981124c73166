"""Milliseconds of one to many texts through fitted runs: stock decoder, lean pass, lean folded.

    taskfit fit TRAIN.csv --method label_words --out RUN     # or any other method
    python benchmarks/scoring.py RUN [RUN ...] --texts TEXTS.csv --out FILE.json

Contenders take every request in turn, so that other work on the machine meets all alike; trust the
ratios. Beside wall time stands processor time, which others' work hardly changes with one thread
(OMP_NUM_THREADS=1). The prefix of the prompt is cached; tokenisation and reading out are included.
The probabilities of each are compared with those of the stock decoder in float32.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from taskfit.data import Example
from taskfit.runs.classifier import Classifier

# Name -> whether adapters are folded in; None: the stock decoder.
CONTENDERS = {"stock": None, "lean": False, "lean, folded": True}


def read_texts(path: Path, columns: tuple[str, ...]) -> list[Example]:
    """Return the texts of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Example(f"{path.name}:{i}", {name: row[name] for name in columns})
        for i, row in enumerate(rows)
    ]


def load(folder: Path, name: str) -> Classifier:
    """Load a run for a contender."""
    classifier = Classifier.load(folder)
    tree = classifier.method.context.need_model().tree
    fold = CONTENDERS[name]
    if fold is None:
        tree.lean.forget()
    else:
        tree.prepare_scoring(fold=fold)
    return classifier


def timed(classifier: Classifier, texts: list[Example]) -> tuple[float, float]:
    """Return wall and processor milliseconds of one request."""
    wall, processor = time.perf_counter(), time.process_time()
    classifier.probabilities(texts)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)


def measure_times(
    contenders: dict[str, Classifier], texts: list[Example], sizes: list[int], requests: int
) -> dict[str, Any]:
    """Return medians and fastest requests by contender and number of texts."""
    result: dict[str, Any] = {}
    for size in sizes:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        count = max(2, requests // size) if size > 1 else requests
        for request in range(-1, count):
            start = (request % max(1, len(texts) // size)) * size
            for name, classifier in contenders.items():
                found = timed(classifier, texts[start : start + size])
                if request >= 0:  # the first one makes kernels for new shapes
                    times[name].append(found)
        result[str(size)] = {
            name: {
                "wall_ms": round(statistics.median(wall for wall, _ in found), 1),
                "processor_ms": round(statistics.median(cpu for _, cpu in found), 1),
                "least_processor_ms": round(min(cpu for _, cpu in found), 1),
                "requests": count,
            }
            for name, found in times.items()
        }
    return result


def measure_errors(
    folder: Path, contenders: dict[str, Classifier], texts: list[Example]
) -> dict[str, Any]:
    """Return how far probabilities are from those of the stock decoder in float32."""
    exact = load(folder, "stock")
    for parameter in exact.method.context.need_model().tree.model.parameters():
        parameter.data = parameter.data.float()
    expected = exact.probabilities(texts)
    result = {}
    for name, classifier in contenders.items():
        found = classifier.probabilities(texts)
        alone = np.concatenate([classifier.probabilities([text]) for text in texts[:16]])
        result[name] = {
            "max_error": round(float(np.abs(found - expected).max()), 5),
            "mean_error": round(float(np.abs(found - expected).mean()), 5),
            "answers_changed": int((found.argmax(1) != expected.argmax(1)).sum()),
            "max_change_by_batch_mates": round(float(np.abs(found[:16] - alone).max()), 5),
        }
    return {"texts": len(texts), "by_contender": result}


def main() -> None:
    """Measure runs; print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, required=True, help="CSV file with the runs' columns")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=24, help="of one text; fewer of more")
    parser.add_argument("--compared", type=int, default=128, help="texts compared with float32")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "runs": {}}
    for folder in arguments.runs:
        contenders = {name: load(folder, name) for name in CONTENDERS}
        method = next(iter(contenders.values())).method
        texts = read_texts(arguments.texts, method.context.asked.text)
        tree = method.context.need_model().tree
        found = {
            "method": method.settings.name,
            "dtype": str(tree.model.dtype).removeprefix("torch."),
            "times": measure_times(contenders, texts, arguments.sizes, arguments.requests),
            "errors": measure_errors(folder, contenders, texts[: arguments.compared]),
        }
        print(folder.name, json.dumps(found, indent=2), flush=True)
        refusals = {
            name: one.method.context.need_model().tree.lean.refusal
            for name, one in contenders.items()
        }
        assert not any(refusals.values()), refusals
        result["runs"][folder.name] = found
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
