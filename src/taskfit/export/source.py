"""A finished run as something to export: its model in any number format, and what it says.

Legend: N texts, L labels, Y predicted tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.export.check import FloatArray
from taskfit.files import read_jsonl
from taskfit.method_base import ReadsOptions
from taskfit.method_settings import TUNING
from taskfit.models.adapters import load_adapter
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.quantize import count_parameters
from taskfit.runs.classifier import FILE, Classifier
from taskfit.runs.predictions import renamed_columns
from taskfit.runs.records import TUNED_FILE, RunResult
from taskfit.runs.saved import ADAPTER, Weights, saved_run, settings_for_prediction
from taskfit.runs.tuning.model import TunedModel
from taskfit.settings import RunSettings
from taskfit.tasks import task_from_dict

# Methods whose runs train a causal language model.
SERVED = ("label_words", "head", "label_text", "distill", *TUNING)
NUM_TEXTS = 8
# Longest text that is compared token by token (tokens).
COMPARED_TOKENS = 128
PLAIN_TEXTS = (
    "This is a short text.",
    "And this one is a little longer, so that there is more to tell apart: is it good or bad?",
)
# Free memory to leave when a model is widened to float32.
HEADROOM = 1.2


@dataclass(frozen=True)
class Source:
    """A finished run, and how to load its model for export.

    Attributes:
        folder: The run's folder.
        saved: What `classifier.json` or `tuned.json` says.
        settings: Of the run, with the model that prediction takes.
        result: What came out of it.
    """

    folder: Path
    saved: Mapping[str, Any]
    settings: RunSettings
    result: RunResult

    @property
    def weights(self) -> Weights:
        """Return which weights were trained."""
        weights: Weights = self.saved["weights"]
        return weights

    @property
    def method(self) -> str:
        """Return the method's name."""
        return self.settings.method.name

    @property
    def is_tuned(self) -> bool:
        """Return whether this is a run of sft or dpo, and not a classifier."""
        return self.method in TUNING

    @property
    def base(self) -> str:
        """Return the base model as the user named it."""
        return str(self.saved["model"])

    @property
    def num_orders(self) -> int:
        """Return over how many orders of its prompt's options the run averages."""
        method = self.settings.method
        return method.option_orders if isinstance(method, ReadsOptions) else 1

    def load(self, *, quantized: bool = False) -> tuple[LoadedModel, PeftModel | None]:
        """Load the run's model with its adapter, in the run's number format.

        Args:
            quantized: Keep a base in 4 bits where the run was trained so (qlora). False: the base
                is loaded anew without quantization.

        Returns:
            The model, and the adapter in it; None where all weights were trained.

        Raises:
            TaskfitError: If base or adapter cannot be had.
        """
        quantization = self.settings.adapter if quantized else None
        model, adapter = load_model(self.settings.model, quantization=quantization), None
        if self.weights in ("lora", "qlora"):
            adapter = load_adapter(model.tree.model, self.folder / ADAPTER)
            model.tree.model.eval()
        if self.is_tuned:
            model.tokenizer.chat_template = self.saved["chat_template"]
        return model, adapter

    def classifier(self, model: LoadedModel) -> Classifier:
        """Return the run's classifier on a given model, without its blend, options as given."""
        found = Classifier.load(self.folder, device=self.settings.model.device, model=model)
        return found.in_given_order() if self.num_orders > 1 else found

    def outputs(self, model: LoadedModel) -> FloatArray:
        """Return what the run says with a given model, on a few texts of its own.

        Returns:
            Probabilities of the labels (N, L); of a tuned model log-probabilities of each next
            token, (Y,). No answer is -1.
        """
        if self.is_tuned:
            return _next_token_log_probs(self, model)
        found = self.classifier(model).probabilities(self.examples)
        return np.nan_to_num(found, nan=-1.0)

    @cached_property
    def examples(self) -> list[Example]:
        """Return a few texts for a classifier: of the run's evaluation sets, or plain ones."""
        task = task_from_dict(self.saved["task"])
        plain = [dict.fromkeys(task.text, text) for text in PLAIN_TEXTS]
        return self.measured(NUM_TEXTS) or [
            Example(f"text {i}", texts) for i, texts in enumerate(plain)
        ]

    def measured(self, limit: int) -> list[Example]:
        """Return texts that a classifier was measured on, of all its evaluation sets alike.

        They have their labels, but those of texts with several.

        Args:
            limit: Most to return.
        """
        task = task_from_dict(self.saved["task"])
        found: list[Example] = []
        files = sorted((self.folder / "predictions").glob("*.parquet"))
        for path in files:
            table = pd.read_parquet(path)
            names = renamed_columns(task.text, {"": task.label_names})
            # Earlier versions renamed fewer columns.
            columns = {c: new if (new := names.get(c, c)) in table else c for c in task.text}
            if set(columns.values()) <= set(table.columns):
                for row in table.head(-(-limit // len(files))).to_dict("records"):
                    texts = {c: str(row[own]) for c, own in columns.items()}
                    gold = row.get("gold")
                    label = str(gold) if gold in task.label_names else None
                    if any(map(str.strip, texts.values())):
                        found.append(Example(f"text {len(found)}", texts, label))
        return found[:limit]

    @cached_property
    def texts(self) -> list[str]:
        """Return a few plain texts for token by token comparison, of the run where it kept any."""
        if not self.is_tuned:
            return [" ".join(e.texts.values()) for e in self.examples]
        samples = read_jsonl(self.folder / "samples.jsonl")
        found = [f"{s['prompt']}\n{s['reference'] or s['answer']}" for s in samples]
        return (list(dict.fromkeys(found)) or list(PLAIN_TEXTS))[:NUM_TEXTS]


def open_source(folder: Path, *, device: str, allow_other_base: bool = False) -> Source:
    """Read a finished run whose model can be exported; see `load_run`.

    Raises:
        CheckpointError: If there is no such run, or its base is not there or another one.
        SettingsError: If its method has no language model of its own to export.
    """
    file = TUNED_FILE if (folder / TUNED_FILE).is_file() else FILE
    hint = "Give the folder of one run of `taskfit fit`, with one question or of tuning."
    with saved_run(folder, file, what="finished run to export", hint=hint) as saved:
        settings, _ = settings_for_prediction(
            folder, saved, device=device, allow_other_base=allow_other_base
        )
        weights = saved["weights"]
    if settings.method.name not in SERVED or weights == "none":
        raise SettingsError(
            f"{folder} is a run of {settings.method.name}, which trains no causal language model; "
            f"what can be exported are runs of {', '.join(SERVED)}."
        )
    return Source(folder, saved, settings, RunResult.load(folder))


def widen(model: LoadedModel) -> bool:
    """Turn a model to float32 in place, if memory allows; return whether it computes in it.

    The numbers stay exactly what they were. Comparisons in float32 show mistakes that rounding in
    16 bits would hide.
    """
    module = model.tree.model
    if module.dtype == torch.float32:
        return True
    needed = 4 * count_parameters(module) * HEADROOM
    if module.device.type == "cuda":
        free = torch.cuda.mem_get_info(module.device)[0]
    else:
        free = psutil.virtual_memory().available
    if free < needed:
        return False
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    return True


def _next_token_log_probs(source: Source, model: LoadedModel) -> FloatArray:
    # The template that the run saved is on the tokenizer already.
    tuning = source.settings.tuning.model_copy(update={"chat_template": None})
    tuned = TunedModel(source.settings.model_copy(update={"tuning": tuning}), model)
    rows = [tuned.encoder.text_ids(text)[:COMPARED_TOKENS] for text in source.texts]
    with model.tree.plain_attention() as plain:
        return token_log_probs(plain, rows)


@torch.no_grad()
def token_log_probs(plain: PreTrainedModel, rows: Sequence[Sequence[int]]) -> FloatArray:
    """Return log p of each token but the first of each row, by plain passes of a model, (Y,)."""
    found = []
    for ids in rows:
        if len(ids) > 1:
            row = torch.tensor([ids], device=plain.device)
            scores = plain(row).logits[0, :-1].double().log_softmax(-1)
            found.append(scores.gather(1, row[0, 1:, None])[:, 0].cpu().numpy())
    return np.concatenate(found)
