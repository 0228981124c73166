"""From 50 labels to a served model on SMS spam: the walk-through of docs/labels.md, run.

    export TASKFIT_DATA=...
    python benchmarks/walkthrough.py --data "$TASKFIT_DATA"/sms_spam/SMSSpamCollection.gz

Whoever labels is played by the set's own labels, of which every 25th is given wrong, as people do;
who reads the audit decides by the right ones. Every step is a command of taskfit with no settings;
what is there already is kept, so that it goes on after an interruption.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd

from taskfit.files import write_json_atomic
from taskfit.runs.records import describe_machine

NUM = 50
NUM_TEST = 1000
# Of the labels that are given, one in so many is wrong.
WRONG = 25
PORT = 8765
MESSAGE = "You have WON a prize of 500 pounds! Call 0900 123456 now to claim it."


class Walk:
    """The commands, in order, in one folder; what they said is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.commands: list[str] = []

    def taskfit(self, *arguments: str, leaves: str) -> None:
        """Run a command, unless what it leaves is there."""
        self.commands.append(f"taskfit {' '.join(arguments)}")
        if not (self.folder / leaves).exists():
            print(self.commands[-1], flush=True)
            command = [sys.executable, "-m", "taskfit", *arguments]
            subprocess.run(command, check=True, cwd=self.folder)

    def table(self, name: str) -> pd.DataFrame:
        """Read a table of the folder."""
        return pd.read_csv(self.folder / name, dtype=str, keep_default_na=False)

    def write(self, table: pd.DataFrame, name: str) -> None:
        """Write one."""
        table.to_csv(self.folder / name, index=False)

    def result(self, run: str) -> dict[str, Any]:
        """Return what a run says of the test set, and its seconds of the processor."""
        found = json.loads((self.folder / run / "result.json").read_text())
        new = found["evaluations"]["new"]
        kept = {k: new[k] for k in ("num_examples", "accuracy", "mcc", "macro_f1", "intervals")}
        return {**kept, "num_train": found["num_train"], "cpu_seconds": found["cpu_seconds"]}


def split(walk: Walk, data: Path) -> pd.Series:
    """Write the test set and the pool; return the right label of every text."""
    lines = pd.read_csv(data, sep="\t", header=None, names=["label", "text"], quoting=3, dtype=str)
    lines = lines.drop_duplicates("text").sample(frac=1, random_state=0)
    walk.write(lines[:NUM_TEST], "test.csv")
    walk.write(lines[NUM_TEST:][["text"]], "pool.csv")
    return lines.set_index("text")["label"]


def fill_in(walk: Walk, source: str, target: str, truth: pd.Series) -> None:
    """Give the texts of a file their labels, one in `WRONG` the other one."""
    table = walk.table(source)
    labels = truth[table["text"]].to_numpy().copy()
    wrong = slice(WRONG // 2, None, WRONG)
    labels[wrong] = ["ham" if label == "spam" else "spam" for label in labels[wrong]]
    walk.write(table.assign(label=labels), target)


def decide(walk: Walk, truth: pd.Series) -> dict[str, int]:
    """Read the audit: suspects that are wrong get the suggested label; say how many there were."""
    table = walk.table("audits/labelled/audit.csv")
    labelled = walk.table("labelled.csv")
    is_error = (table["kind"] == "label error").to_numpy()
    # Rows are called FILE:LINE; no message goes over a line, and the first line is the header.
    places = table["id"].str.rpartition(":")[2].map(lambda line: int(line) - 2 if line else 0)
    right = truth[labelled["text"].iloc[places]].to_numpy()
    wrong = is_error & (right != table["label"].to_numpy())
    table["decision"] = ["relabel" if w else "keep" for w in wrong]
    walk.write(table, "decided.csv")
    given = labelled["label"].to_numpy() != truth[labelled["text"]].to_numpy()
    return {"rows": len(labelled), "wrong": int(given.sum())} | {
        "suspected": int(is_error.sum()),
        "found": int(wrong.sum()),
    }


def serve(walk: Walk, run: str) -> dict[str, Any]:
    """Serve a run, ask it once, and stop it."""
    walk.commands.append(f"taskfit serve {run} --port {PORT}")
    command = [sys.executable, "-m", "taskfit", "serve", run, "--port", str(PORT)]
    address = f"http://127.0.0.1:{PORT}"
    body = json.dumps({"input": MESSAGE}).encode()
    with subprocess.Popen(command, cwd=walk.folder) as server:
        try:
            for _ in range(300):
                time.sleep(1)
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    continue
            asked = urllib.request.Request(
                f"{address}/classify", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=120) as reply:
                return {"asked": MESSAGE, "answer": json.load(reply)}
        finally:
            server.terminate()


def walk_through(walk: Walk, data: Path) -> dict[str, Any]:
    """Run every step; return what each brought."""
    truth = split(walk, data)
    found: dict[str, Any] = {}
    test = ("--test", "new=test.csv")

    walk.taskfit("next", "pool.csv", "-n", str(NUM), "-o", "first.csv", leaves="first.csv")
    fill_in(walk, "first.csv", "labelled-1.csv", truth)
    labels = walk.table("labelled-1.csv")["label"].value_counts().to_dict()
    walk.taskfit("fit", "labelled-1.csv", *test, "--out", "one", leaves="one/result.json")
    found["50 chosen"] = {**walk.result("one"), "labels": labels}

    walk.taskfit("next", "one", "pool.csv", "-n", str(NUM), "-o", "second.csv", leaves="second.csv")
    fill_in(walk, "second.csv", "labelled-2.csv", truth)
    columns = ["text", "label"]
    both = [walk.table(f"labelled-{number}.csv")[columns] for number in (1, 2)]
    walk.write(pd.concat(both), "labelled.csv")
    labels = walk.table("labelled.csv")["label"].value_counts().to_dict()
    walk.taskfit("fit", "labelled.csv", *test, "--out", "two", leaves="two/result.json")
    found["100 chosen"] = {**walk.result("two"), "labels": labels}

    walk.taskfit("audit", "labelled.csv", leaves="audits/labelled/audit.csv")
    found["audit"] = decide(walk, truth)
    applied = ("--apply", "decided.csv", "-o", "corrected.csv")
    walk.taskfit("audit", "labelled.csv", *applied, leaves="corrected.csv")
    walk.taskfit("fit", "corrected.csv", *test, "--out", "three", leaves="three/result.json")
    found["100 chosen, audited"] = walk.result("three")

    random = ("next", "pool.csv", "-n", str(2 * NUM), "--strategy", "random")
    walk.taskfit(*random, "-o", "random.csv", leaves="random.csv")
    fill_in(walk, "random.csv", "labelled-random.csv", truth)
    labels = walk.table("labelled-random.csv")["label"].value_counts().to_dict()
    walk.taskfit(
        "fit", "labelled-random.csv", *test, "--out", "random", leaves="random/result.json"
    )
    found["100 at random"] = {**walk.result("random"), "labels": labels}

    found["served"] = serve(walk, "three")
    return found


def main() -> None:
    """Walk through, and write what it brought."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="SMSSpamCollection, or its .gz")
    parser.add_argument("--folder", type=Path, default=Path("runs/walkthrough"))
    parser.add_argument("--out", type=Path, default=Path("results/labels/walkthrough.json"))
    given = parser.parse_args()
    walk = Walk(given.folder.resolve())
    found = walk_through(walk, given.data)
    record = {"commands": walk.commands, "found": found, "machine": describe_machine()}
    write_json_atomic(given.out, record)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
