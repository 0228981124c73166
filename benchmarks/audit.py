"""How many planted label errors `taskfit audit` finds, and what removing its suspects is worth.

    TASKFIT_DATA=... python benchmarks/audit.py --out results/labels/audit.json

Of each set a table of 1,000 rows is drawn; 2, 5 and 10 % of its labels are changed to another one,
drawn evenly, three times. As many rows as were changed are then taken from the top of the audit's
ranking: of those that share is really changed (recall and precision are the same there). Fits of
the same method, on the features that the audit read, are measured on other texts: with the clean
table, the changed one, the changed one without its suspects, with all of them relabelled unread,
and with those put right that were changed, as who reads them would. The sets' own errors and
doubtful texts are among the suspects, and bound what can be found.

A table's rows are the same in all draws, only what is changed differs, so that texts are read once.

Where the package cleanlab is installed, its suspects on the same probabilities are compared.

Records are kept as they are made, and those in the file that is written are not made again: the
same command goes on after an interruption, and further sets and draws come to the others.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from defaults_data import Row, Table, load_table, write_csv
from taskfit.data import Example
from taskfit.files import append_jsonl, read_jsonl, write_json_atomic
from taskfit.labels.audit import Audit, audit
from taskfit.labels.audit_method import DEFAULT_METHOD
from taskfit.methods.method import MethodContext
from taskfit.methods.table import label_method
from taskfit.models.load import LoadedModel, load_model
from taskfit.settings import ModelSettings, RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import task_from_columns

METHODS = {
    "both": DEFAULT_METHOD,
    "minilm": {"name": "probe", "features": "minilm"},
    "model": {**DEFAULT_METHOD, "features": "model"},
}
SETS = ("sms_spam", "ag_news", "sst2", "cr")
RATES = (0.02, 0.05, 0.10)
SEEDS = (0, 1, 2)
SIZE = 1000
TABLES = ("clean", "flipped", "removed", "relabelled", "reviewed")


def flip(rows: list[Row], labels: list[str], *, rate: float, seed: int) -> tuple[list[Row], Any]:
    """Return rows of which a share has another label, and which have, (N,)."""
    generator = np.random.default_rng([seed, round(1000 * rate)])
    flipped = np.zeros(len(rows), bool)
    flipped[generator.choice(len(rows), round(rate * len(rows)), replace=False)] = True
    changed = []
    for row, is_flipped in zip(rows, flipped, strict=True):
        others = [label for label in labels if label != row["label"]]
        changed.append({**row, "label": str(generator.choice(others))} if is_flipped else row)
    return changed, flipped


def settings_of(table: Path, method: dict[str, Any], seed: int) -> RunSettings:
    """Return the settings of an audit."""
    data = {"train": str(table), "text": ["text"], "label": "label"}
    return settings_from_dict({"data": data, "method": method, "seed": seed})


def accuracy(settings: RunSettings, rows: list[Row], table: Table, model: LoadedModel) -> float:
    """Fit the audit's method on rows, and measure it on the test texts."""
    task = task_from_columns(
        name="custom", text=["text"], label_column="label", labels=table.labels
    )
    method = label_method(settings.method.name)(MethodContext(settings, task, (), model))
    method.prepare(examples_of(rows), ())
    said = method.probabilities(examples_of(table.test)).argmax(axis=1)
    gold = [table.labels.index(row["label"]) for row in table.test]
    return float(np.mean(said == gold))


def examples_of(rows: list[Row]) -> list[Example]:
    """Return rows as examples."""
    return [Example(str(i), {"text": r["text"]}, r["label"]) for i, r in enumerate(rows)]


def measure(what: tuple[str, str, int, float], table: Table, model: LoadedModel) -> dict[str, Any]:
    """Plant errors, audit, and return the record.

    Args:
        what: Features, set, seed of the draw, and share of labels that are changed.
        table: The set.
        model: The base model.
    """
    features, name, seed, rate = what
    started = time.process_time()
    rows = table.draw(SIZE, seed=0)
    changed, flipped = flip(rows, table.labels, rate=rate, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(write_csv(Path(folder) / "t.csv", changed), METHODS[features], seed)
        found = audit(settings, Path(folder) / "audit", model=model)
    labels = list(found.labels)
    places = np.arange(len(changed))
    given = np.array([labels.index(row["label"]) for row in changed])
    own = found.probabilities[places, given]
    worst = np.argsort(own, kind="stable")[: flipped.sum()]
    suspected = np.isin(places, _suspected(found))
    others = found.probabilities.copy()
    others[places, given] = -1
    relabelled, reviewed = list(changed), list(changed)
    for place in worst:
        relabelled[place] = {**changed[place], "label": labels[others[place].argmax()]}
        reviewed[place] = rows[place]
    removed = [row for place, row in enumerate(changed) if place not in set(worst)]
    tables = (rows, changed, removed, relabelled, reviewed)
    return {
        "features": features,
        "set": name,
        "rate": rate,
        "seed": seed,
        "recall_at_planted": float(flipped[worst].mean()),
        "auroc": float(roc_auc_score(flipped, -own)),
        "num_suspected": int(suspected.sum()),
        "in_cleanlab_too": in_cleanlab(given, found.probabilities, suspected),
        "suspected_precision": float(flipped[suspected].mean()) if suspected.any() else None,
        "suspected_recall": float(suspected[flipped].mean()),
        "accuracy": {
            kind: accuracy(settings, some, table, model)
            for kind, some in zip(TABLES, tables, strict=True)
        },
        "cpu_seconds": time.process_time() - started,
    }


def in_cleanlab(
    given: NDArray[np.int64], probabilities: NDArray[np.float64], suspected: NDArray[np.bool_]
) -> float | None:
    """Return the rows that both suspect as a share of those that either does; None without it."""
    if find_spec("cleanlab") is None:
        return None
    from cleanlab.filter import find_label_issues

    theirs = find_label_issues(given, probabilities, n_jobs=1)
    either = int((suspected | theirs).sum())
    return float((suspected & theirs).sum() / either) if either else 1.0


def _suspected(found: Audit) -> list[int]:
    """Return the rows (from 0) that the audit suspects; a row of these tables is a line."""
    rows = found.findings
    return [int(i.rsplit(":", 1)[1]) - 2 for i in rows[rows["kind"] == "label error"]["id"]]


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over draws for all features, sets and rates."""
    table = pd.json_normalize(records).drop(columns="seed")
    table.columns = table.columns.str.removeprefix("accuracy.")
    groups = table.groupby(["features", "set", "rate"], sort=False)
    means = groups.mean().round(4).assign(draws=groups.size())
    found: list[dict[str, Any]] = means.reset_index().to_dict("records")
    return found


def main() -> None:
    """Measure what is missing, and write records with their means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/labels/audit.json"))
    parser.add_argument("--features", nargs="+", choices=METHODS, default=["both", "minilm"])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    asked = parser.parse_args()
    before = json.loads(asked.out.read_text())["records"] if asked.out.is_file() else []
    kept = asked.out.with_suffix(".partial.jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    done = {
        (r["features"], r["set"], r["seed"], r["rate"]): r for r in (*before, *read_jsonl(kept))
    }
    model = load_model(ModelSettings())
    model.tree.prepare_scoring()
    for features, name in product(asked.features, asked.sets):
        table = load_table(name, Path(os.environ["TASKFIT_DATA"]))
        for seed, rate in product(asked.seeds, RATES):
            what = (features, name, seed, rate)
            if what not in done:
                record = measure(what, table, model)
                append_jsonl(kept, record)
                done[what] = record
                print(*what, json.dumps(record), flush=True)
    records = list(done.values())
    write_json_atomic(asked.out, {"size": SIZE, "means": summary(records), "records": records})
    kept.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
