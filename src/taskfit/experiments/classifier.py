"""A fitted classifier: what evaluation, prediction and the estimator all score with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import CheckpointError
from taskfit.evaluation import Evaluation, evaluate_probabilities
from taskfit.experiments.records import library_versions
from taskfit.files import write_json_atomic
from taskfit.methods import LabelScorer, apply_prior
from taskfit.models import LoadedModel, load_adapter, load_model
from taskfit.settings import ModelSettings
from taskfit.tasks import PromptEncoder, Task, task_from_dict, task_to_dict

FILE = "classifier.json"
ADAPTER = "adapter"
MODEL = "model"
Weights = Literal["none", "lora", "full"]
FloatArray = NDArray[np.float64]


class Classifier:
    """A model with a task's prompt: texts in, probabilities of the labels out.

    Attributes:
        task: The task.
        model: The model, with its adapter inside where there is one.
        scorer: The scoring path.
        log_prior: What scores are divided by, (labels,), or None.
    """

    def __init__(
        self,
        task: Task,
        model: LoadedModel,
        demonstrations: Sequence[Example],
        *,
        max_length: int | None = None,
        token_budget: int | None = None,
    ) -> None:
        """Bind a task to a model.

        Args:
            task: The task.
            model: The model.
            demonstrations: What stands in every prompt.
            max_length: Longest prompt with its completion (tokens); None: the model's limit.
            token_budget: Most unique tokens in one scoring pass; None: see `LabelScorer`.
        """
        limit = model.tree.max_length
        self.task = task
        self.model = model
        self.log_prior: FloatArray | None = None
        encoder = PromptEncoder(
            model.tokenizer,
            task,
            demonstrations,
            max_length=min(limit, max_length) if max_length else limit,
        )
        self.scorer = LabelScorer(model.tree, encoder, token_budget=token_budget)

    @property
    def encoder(self) -> PromptEncoder:
        """The task's encoder."""
        return self.scorer.encoder

    def probabilities(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> FloatArray:
        """Return the probability of every label, (examples, labels)."""
        return apply_prior(self.scorer.log_probs(examples, advance=advance), self.log_prior)

    def evaluate(self, examples: Sequence[Example], probabilities: FloatArray) -> Evaluation:
        """Measure probabilities of labelled examples."""
        names = self.task.label_names
        gold = np.array([names.index(str(example.label)) for example in examples])
        return evaluate_probabilities(probabilities, gold, labels=names)

    def save(self, folder: Path, *, weights: Weights, extra: dict[str, Any]) -> None:
        """Write everything but weights that prediction needs.

        Args:
            folder: The run's folder.
            weights: Whether there is an adapter or a whole model beside it.
            extra: More to record, such as the method.
        """
        encoder = self.encoder
        write_json_atomic(
            folder / FILE,
            {
                **extra,
                "weights": weights,
                "model": self.model.name,
                "revision": self.model.revision,
                "dtype": str(self.model.tree.model.dtype).removeprefix("torch."),
                "max_length": encoder.max_length,
                "task": task_to_dict(self.task),
                "demonstrations": [
                    {"id": d.id, "texts": dict(d.texts), "label": d.label}
                    for d in encoder.demonstrations
                ],
                "log_prior": None if self.log_prior is None else self.log_prior.tolist(),
                "versions": library_versions(),
            },
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> "Classifier":
        """Load the classifier of a finished run.

        Args:
            folder: The run's folder.
            device: Where to put it; see `model.device`.

        Raises:
            CheckpointError: If the folder holds no finished run, or part of it is missing.
        """
        path = folder / FILE
        if not path.is_file():
            hint = (
                f" It was interrupted: continue with `taskfit fit --resume {folder}`."
                if (folder / "settings.yaml").is_file()
                else " Give the folder that `taskfit fit --out` made."
            )
            raise CheckpointError(f"{folder} holds no finished run: no {FILE} in it.{hint}")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            task = task_from_dict(saved["task"])
            demonstrations = [Example(**entry) for entry in saved["demonstrations"]]
            weights = saved["weights"]
            settings = ModelSettings(
                name=str(folder / MODEL) if weights == "full" else saved["model"],
                revision=None if weights == "full" else saved["revision"],
                dtype=saved["dtype"],
                device=device,
            )
            prior = saved["log_prior"]
            max_length = saved["max_length"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}.") from error
        model = load_model(settings)
        if weights == "lora":
            load_adapter(model.tree.model, folder / ADAPTER)
            model.tree.model.eval()
        classifier = cls(task, model, demonstrations, max_length=max_length)
        classifier.log_prior = None if prior is None else np.array(prior)
        return classifier
