"""What every contender of `peers.py` is given, read from files; needs nothing but NumPy.

A folder holds `task.json` and one JSON Lines file a set: `train.jsonl` and `test_NAME.jsonl`. Each
row has the text, its label, and the text in the task's prompt without demonstrations, so that peers
that read prompts get ours. `peer_prepare.py` writes the folder.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PeerSet:
    """One set of texts.

    Attributes:
        texts: The texts alone.
        prompts: The same in the task's prompt, which ends where the label stands.
        gold: Index of the right label of each.
    """

    texts: list[str]
    prompts: list[str]
    gold: list[int]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class PeerData:
    """Everything of one job.

    Attributes:
        folder: Where it was read.
        task: Built-in task of taskfit, or None for one made from the columns.
        text_column: Of `train.jsonl`.
        label_column: Of `train.jsonl`.
        labels: Names of the labels, in the order of all columns of probabilities.
        words: Their text as completion, leading space included.
        question: The task as a question, for peers that ask one; may be None.
        train: Training set.
        tests: Evaluation sets by name, in domain first.
    """

    folder: Path
    task: str | None
    text_column: str
    label_column: str
    labels: list[str]
    words: list[str]
    question: str | None
    train: PeerSet
    tests: dict[str, PeerSet]

    def digest(self) -> str:
        """Return a hash of all texts and labels as the contender sees them."""
        sets = {"train": self.train, **self.tests}
        rows = {name: [found.texts, found.gold] for name, found in sets.items()}
        return hashlib.sha256(json.dumps([self.labels, rows]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What all contenders share where they have it.

    Attributes:
        model: Folder of the causal model.
        encoder: Folder of the sentence encoder.
        scratch: A folder that the contender may fill; it is empty.
        epochs: Passes over the training set.
        batch_size: Examples of an optimizer step.
        learning_rate: Peak learning rate of the adapters.
        seed: Seed of the contender's own draws.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale.
        lora_dropout: Dropout before them.
        max_steps: Most optimizer steps, for trials; None: no limit.
    """

    model: str
    encoder: str
    scratch: str
    epochs: int
    batch_size: int = 16
    learning_rate: float = 5e-4
    seed: int = 0
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    max_steps: int | None = None


@dataclass
class Clock:
    """Seconds by stage: `load` (imports and weights), `training`, `evaluation`.

    Attributes:
        wall: Wall-clock seconds.
        processor: Processor seconds of all threads.
    """

    wall: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Charge what happens inside to a stage."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall[stage] = self.wall.get(stage, 0.0) + time.perf_counter() - wall
        self.processor[stage] = self.processor.get(stage, 0.0) + time.process_time() - processor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contender gives back.

    Attributes:
        probabilities: (N, L) of each evaluation set, columns in the order of the labels.
        settings: Everything that decides its result beside the shared options.
    """

    probabilities: dict[str, FloatArray]
    settings: dict[str, Any]


def read_data(folder: Path) -> PeerData:
    """Read what `peer_prepare.write_data` wrote."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    place = {label: index for index, label in enumerate(task["labels"])}

    def read(name: str) -> PeerSet:
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return PeerSet(
            [row[task["text_column"]] for row in rows],
            [row["prompt"] for row in rows],
            [place[row[task["label_column"]]] for row in rows],
        )

    return PeerData(
        folder=folder,
        task=task["task"],
        text_column=task["text_column"],
        label_column=task["label_column"],
        labels=task["labels"],
        words=task["words"],
        question=task["question"],
        train=read("train"),
        tests={name: read(f"test_{name}") for name in task["tests"]},
    )


def by_length(texts: list[str]) -> list[int]:
    """Return the places of texts, longest first, so that a batch has little padding."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


def log_softmax(scores: FloatArray) -> FloatArray:
    """Return log-probabilities of (N, L) scores."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
