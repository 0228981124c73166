"""Write the data of `peers.py` once, by taskfit's own preparation, for all contenders to read."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from taskfit.data import Example, draw
from taskfit.files import folder_atomic
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.settings_file import load_settings
from taskfit.tasks.prompt import render_prompt


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set of the comparison.

    Attributes:
        task: Built-in task, or None for a table of one's own.
        metric: What quality means, `accuracy` or `mcc`.
        question: The task as a question, for peers that ask one.
        epochs: Passes over the training set by number of labels.
        per_class: Whether the number of labels is a number for each class.
        table: Folder inside TASKFIT_DATA with `train.csv.gz` and `test.csv`, without a task.
        label: Label column of such a table.
    """

    task: str | None
    metric: str
    question: str | None
    epochs: dict[int, int]
    per_class: bool = False
    table: str | None = None
    label: str = "label"


DATA_SETS = {
    "sentiment": DataSet(
        task="sentiment",
        metric="accuracy",
        question="Is the sentiment of the text positive or negative?",
        epochs={16: 12, 64: 6, 256: 3, 1024: 2},
    ),
    "banking77": DataSet(
        task=None,
        metric="accuracy",
        question="What does the customer ask about?",
        epochs={1: 1, 8: 6},
        per_class=True,
        table="banking77",
        label="category",
    ),
    "cola": DataSet(
        task="cola",
        metric="mcc",
        question="Is the sentence grammatically acceptable?",
        epochs={16: 12, 256: 3, 1024: 3},
    ),
}


def is_present(name: str) -> bool:
    """Return whether a data set can be read here; sentiment fetches itself."""
    if name == "sentiment":
        return True
    folder = os.environ.get("TASKFIT_DATA")
    return folder is not None and (Path(folder) / (DATA_SETS[name].table or name)).is_dir()


def prepare(name: str, num_labels: int, *, seed: int) -> PreparedData:
    """Draw the labelled examples of a data set; no text of a test set is among them."""
    found = DATA_SETS[name]
    # A method without demonstrations, so that all drawn examples are in the training set.
    flags = {
        "seed": seed,
        "method": {"name": "tfidf"},
        "data": {"shots_per_class" if found.per_class else "num_train": num_labels},
    }
    if found.task is not None:
        flags["task"] = {"name": found.task}
    else:
        folder = Path(os.environ["TASKFIT_DATA"]) / str(found.table)
        flags["data"] |= {
            "train": str(folder / "train.csv.gz"),
            "tests": {"test": str(folder / "test.csv")},
            "text": ["text"],
            "label": found.label,
        }
    return prepare_data(load_settings(flags=flags))


def write_data(
    folder: Path, name: str, num_labels: int, *, seed: int, max_test: int, max_other: int
) -> None:
    """Write a folder that `peer_data.read_data` reads; one of the same draw is kept.

    Args:
        folder: Where.
        name: A key of `DATA_SETS`.
        num_labels: Labelled examples in all, or of each class.
        seed: Seed of the draw.
        max_test: Most texts of the first evaluation set.
        max_other: Most texts of each further one.
    """
    drawn = {"labels": num_labels, "seed": seed, "max_test": max_test, "max_other": max_other}
    stored = folder / "task.json"
    if stored.is_file() and json.loads(stored.read_text(encoding="utf-8"))["drawn"] == drawn:
        return
    data = prepare(name, num_labels, seed=seed)
    task = data.task
    (text_column,) = task.text
    with folder_atomic(folder) as target:

        def write(stem: str, examples: list[Example]) -> None:
            rows = [
                {
                    "id": example.id,
                    text_column: example.texts[text_column],
                    task.label_column: example.label,
                    "prompt": render_prompt(task, example.texts, []),
                }
                for example in examples
            ]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (target / f"{stem}.jsonl").write_text("".join(lines), encoding="utf-8")

        write("train", data.train)
        for place, (test, examples) in enumerate(data.evaluations.items()):
            most = min(max_other if place else max_test, len(examples))
            write(f"test_{test}", draw(examples, num_examples=most, shots_per_class=None, seed=0))
        described = {
            "task": DATA_SETS[name].task,
            "text_column": text_column,
            "label_column": task.label_column,
            "labels": list(task.label_names),
            "words": [label.words[0] for label in task.labels],
            "question": DATA_SETS[name].question,
            "tests": list(data.evaluations),
            "drawn": drawn,
        }
        (target / "task.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
