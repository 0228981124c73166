"""Our rows of `peers.py`: taskfit's methods on the same files, through the library."""

from pathlib import Path
from typing import Any

import numpy as np

from peer_data import Clock, Outcome, PeerData, PeerOptions

# Row -> method settings; all else is the defaults and the shared options.
DEFAULT = "taskfit default"
OURS: dict[str, dict[str, Any]] = {
    # What `taskfit fit` does without a setting; of the shared options it takes none.
    DEFAULT: {},
    "taskfit label words": {"name": "label_words"},
    "taskfit label words, half the epochs": {"name": "label_words"},
    "taskfit label words, joint": {"name": "label_words", "loss": "labels"},
    "taskfit head": {"name": "head"},
    "taskfit label text": {"name": "label_text"},
    "taskfit probe": {"name": "probe"},
    "taskfit few-shot": {"name": "in_context"},
    "taskfit encoder minilm": {"name": "encoder"},
    "taskfit knn minilm": {"name": "knn"},
    "taskfit tfidf": {"name": "tfidf"},
}


def run_ours(
    data: PeerData, options: PeerOptions, clock: Clock, *, method: dict[str, Any]
) -> Outcome:
    """Fit one of our methods and predict the evaluation sets.

    Training is all of `fit`: reading the table, encoding, training, and writing the run folder.
    """
    with clock.measure("load"):
        from taskfit.data import Example
        from taskfit.models.load import load_model
        from taskfit.runs.fit import fit
        from taskfit.settings_file import settings_from_dict

        table = {
            "train": str(data.folder / "train.jsonl"),
            "text": [data.text_column],
            "label": data.label_column,
            "test_fraction": 0.0,
        }
        flags: dict[str, Any] = {
            "seed": options.seed,
            "data": table,
            "model": {"name": options.model},
        }
        shared: dict[str, Any] = {
            # Every label is trained on, as by the peers; nothing is chosen by validation.
            "data": table | {"validation_fraction": 0.0},
            "method": method,
            "adapter": {
                "lora_rank": options.lora_rank,
                "lora_alpha": options.lora_alpha,
                "lora_dropout": options.lora_dropout,
                "layers": "all",
            },
            "training": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "keep": "last",
                "tensorboard": False,
            },
        }
        if data.task is not None:
            flags["task"] = {"name": data.task}
        if options.max_steps is not None:
            shared["training"]["max_steps"] = options.max_steps
        if method.get("name") != "encoder":
            shared["training"]["learning_rate"] = options.learning_rate
        # Of the options that rows share, each takes what its method reads; the default takes none.
        settings = (
            settings_from_dict(flags | shared, asked={"method": method})
            if method
            else settings_from_dict(flags)
        )
        model = load_model(settings.model) if settings.method.reads_model else None
    with clock.measure("training"):
        fitted = fit(settings, Path(options.scratch) / "run", model=model, baselines=False)
    classifier = fitted.fitted
    columns = [classifier.task.label_names.index(label) for label in data.labels]
    probabilities = {}
    for name, test in data.tests.items():
        with clock.measure("evaluation"):
            examples = [
                Example(f"{name}:{place}", {data.text_column: text})
                for place, text in enumerate(test.texts)
            ]
            probabilities[name] = np.asarray(classifier.probabilities(examples))[:, columns]
    resolved = fitted.result
    kept = settings.resolved().model_dump(mode="json", include={"method", "adapter", "training"})
    return Outcome(
        probabilities,
        {
            "num_train": resolved.num_train,
            "num_demonstrations": resolved.num_demonstrations,
            "tokens": resolved.tokens,
            **kept,
        },
    )
