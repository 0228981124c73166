"""What a student learns from a stronger model that labels texts for it, over OpenAI's protocol.

    python benchmarks/annotator.py --folder runs/annotator --out results/labels/annotator.json

The stronger model is a run of our own: logistic regression on MiniLM's features, fitted to 6,000
labelled movie snippets, behind an endpoint that answers with a label's word and its
log-probability. It labels 300 other snippets with `taskfit label`, checked against 150 more that
people labelled. Then SmolLM2-135M learns from these shares without any label by people, and is
compared with its teacher, with learning from the teacher's answers alone, from 50 labels by people,
and with itself untrained. What is there already is kept, so that it goes on after an interruption.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from taskfit.data import Example, load_builtin
from taskfit.files import write_json_atomic
from taskfit.runs.load import load_classifier
from taskfit.runs.records import describe_machine

COMMAND = (
    "python benchmarks/annotator.py --folder runs/annotator --out results/labels/annotator.json"
)
NUM = {"teacher": 6000, "pool": 300, "check": 150, "few": 50}
NUM_TEST = 120
LEARNED = ("method.loss=labels", "method.num_demonstrations=0")
TRAINED = (
    *("training.tensorboard=false", "training.keep=last"),
    # As many steps for every student.
    *("training.max_steps=57", "training.epochs=20", "training.batch_size=16"),
    "adapter.layers=10",
)
WHOLE = ("data.validation_fraction=0", "data.test_fraction=0")
# Student -> the table that it learns from, and how.
STUDENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shares of the teacher": ("soft", ("method.name=distill", "method.teacher=soft_labels")),
    "answers of the teacher": ("hard", ("method.name=label_words", *LEARNED)),
    "50 labels by people": ("few", ("method.name=label_words", *LEARNED)),
    "untrained": ("few", ("method.name=in_context", "method.num_demonstrations=0")),
}


def taskfit(*arguments: str) -> None:
    """Run a command of ours."""
    print("taskfit", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "taskfit", *arguments], check=True)


def write_tables(folder: Path, seed: int) -> list[str]:
    """Write all tables that are read; return the names of the test sets."""
    data = load_builtin("sentiment", folder=None)
    order = np.random.default_rng([seed, 7]).permutation(len(data.train))
    drawn = [data.train[i] for i in order]
    parts: dict[str, list[Example]] = {}
    for name, count in NUM.items():
        parts[name], drawn = drawn[:count], drawn[count:]
    table(parts["teacher"]).to_csv(folder / "teacher.csv", index=False)
    table(parts["pool"]).drop(columns="label").to_csv(folder / "pool.csv", index=False)
    table(parts["check"]).to_csv(folder / "check.csv", index=False)
    table(parts["few"]).to_csv(folder / "few.csv", index=False)
    for name, examples in data.evaluations.items():
        chosen = np.random.default_rng([seed, 8]).permutation(len(examples))[:NUM_TEST]
        table([examples[i] for i in chosen]).to_csv(folder / f"test-{name}.csv", index=False)
    return list(data.evaluations)


def table(examples: list[Example]) -> pd.DataFrame:
    """Return texts and labels."""
    return pd.DataFrame([{"text": e.texts["text"], "label": e.label} for e in examples])


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Answer as an endpoint of OpenAI's protocol does while this lasts; return the address.

    The text is what stands behind `Text: ` in the last turn, as the task's line writes it.
    """
    classifier, lock = load_classifier(run, device="cpu"), threading.Lock()
    labels = classifier.task.label_names

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        turn = body["messages"][-1]["content"]
        text = turn.removeprefix("Text: ").removesuffix("\nSentiment:")
        with lock:
            (row,) = classifier.probabilities([Example("asked", {"text": text})])
        top = [
            {"token": label, "logprob": math.log(max(p, 1e-9))}
            for p, label in sorted(zip(row, labels, strict=True), reverse=True)
        ]
        content = [{**top[0], "top_logprobs": top}]
        message = {"role": "assistant", "content": top[0]["token"]}
        return {"choices": [{"message": message, "logprobs": {"content": content}}]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = json.dumps(reply(body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


def annotated(folder: Path, tests: list[str]) -> dict[str, Any]:
    """Let the teacher label pool and test sets; return the reports of each."""
    names = {"soft": "pool", **{f"said-{name}": f"test-{name}" for name in tests}}
    missing = [name for name in names if not (folder / f"{name}.report.json").is_file()]
    if missing:
        # Answers that are kept of another teacher are not those of this one.
        weights = (folder / "teacher" / "result.json").read_bytes()
        teacher = f"teacher-{hashlib.sha256(weights).hexdigest()[:8]}"
        with served(folder / "teacher") as address:
            for name in missing:
                check = ["--check", str(folder / "check.csv"), "--calibrate"]
                endpoint = ["--remote", address, "--remote-model", teacher]
                source, target = folder / f"{names[name]}.csv", folder / f"{name}.csv"
                taskfit(
                    *("label", str(source), "--task", "sentiment", "-o", str(target)),
                    *endpoint,
                    *(check if name == "soft" else ()),
                )
    soft = pd.read_csv(folder / "soft.csv")
    hard = soft[["text", "predicted"]].rename(columns={"predicted": "label"})
    hard.to_csv(folder / "hard.csv", index=False)
    return {name: read(folder / f"{name}.report.json") for name in names}


def read(path: Path) -> dict[str, Any]:
    """Return a file of JSON."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def students(folder: Path, tests: list[str]) -> dict[str, Any]:
    """Fit every student; return what each was measured to."""
    found = {}
    for place, (name, (source, settings)) in enumerate(STUDENTS.items()):
        run = folder / f"student-{place}"
        if not (run / "result.json").is_file():
            sets = [*settings, *WHOLE]
            sets += TRAINED if "in_context" not in settings[0] else TRAINED[:1]
            if source == "soft":
                sets += [
                    f"data.soft_labels.{label}=p_{label}" for label in ("negative", "positive")
                ]
            given = [part for one in sets for part in ("--set", one)]
            given += [
                part
                for test in tests
                for part in ("--test", f"{test}={folder / f'test-{test}.csv'}")
            ]
            table = str(folder / f"{source}.csv")
            taskfit("fit", table, "--task", "sentiment", *given, "--out", str(run))
        result = read(run / "result.json")
        found[name] = {
            "num_train": result["num_train"],
            "processor_seconds": round(result["cpu_seconds"]),
            "sets": {test: shown(result["evaluations"][test]) for test in tests},
        }
    return found


def shown(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an evaluation that are recorded."""
    low, high = evaluation["intervals"]["accuracy"]
    numbers = {key: round(evaluation[key], 4) for key in ("accuracy", "log_loss", "ece")}
    return {**numbers, "accuracy_interval": [round(low, 4), round(high, 4)]}


def main() -> None:
    """Fit the teacher, let it label, fit the students, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    tests = write_tables(folder, arguments.seed)
    teacher = folder / "teacher"
    if not (teacher / "result.json").is_file():
        sets = ("method.name=probe", "method.features=minilm", *WHOLE)
        given = [part for one in sets for part in ("--set", one)]
        given += ["--test", f"movies={folder / 'test-movies.csv'}"]
        taskfit(
            *("fit", str(folder / "teacher.csv"), "--task", "sentiment"),
            *(*given, "--out", str(teacher)),
        )
    reports = annotated(folder, tests)
    record = {
        "command": COMMAND,
        "seed": arguments.seed,
        "num": {**NUM, "test": NUM_TEST},
        "machine": describe_machine(),
        "teacher": {
            "processor_seconds": round(read(teacher / "result.json")["cpu_seconds"]),
            "sets": {
                test: shown(reports[f"said-{test}"]["agreement"]["evaluation"]) for test in tests
            },
        },
        "annotation": {
            key: reports["soft"][key]
            for key in ("counts", "read_from", "num_unanswered", "usage", "temperature")
        }
        | {key: brief(reports["soft"][key]) for key in ("agreement", "calibrated")},
        "students": students(folder, tests),
    }
    print(json.dumps(record, indent=2))
    if arguments.out:
        write_json_atomic(arguments.out, record)


def brief(agreement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an agreement that are recorded."""
    return {
        **shown(agreement["evaluation"]),
        "kappa": round(agreement["kappa"], 4),
        "kappa_interval": [round(value, 4) for value in agreement["kappa_interval"]],
        "brier": round(agreement["brier"], 4),
    }


if __name__ == "__main__":
    main()
