"""A classifier's adapter as PEFT's for sequence classification: LoRA weights and the layer `score`.

Legend: L labels, D hidden width.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from taskfit.errors import SettingsError
from taskfit.export.check import Exported, FloatArray, compare
from taskfit.export.classification import class_settings, model_probabilities, padded, score_notes
from taskfit.export.entry import find_entry
from taskfit.export.scores import BIAS_TEXTS, bias_in_weight, read_linear
from taskfit.export.source import Source, widen
from taskfit.files import write_json_atomic
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.adapters import ADAPTER_WEIGHTS, load_adapter
from taskfit.models.load import DTYPES
from taskfit.models.whole import load_whole
from taskfit.runs.saved import ADAPTER
from taskfit.training.memory import free_memory

CONFIG = "adapter_config.json"
SCORE = "base_model.model.score.weight"


def check_has_adapter(source: Source, dtype: str | None) -> None:
    """Raise, before any model is loaded, if a run trained all weights.

    Raises:
        SettingsError: If there is no adapter, or another number format is asked for.
    """
    if dtype is not None:
        raise SettingsError("An adapter keeps the numbers that were trained; leave out --dtype.")
    if source.weights == "full":
        raise SettingsError(
            f"{source.folder} trained all weights, so it has no adapter. Use --as "
            "sequence-classification."
        )


def export_adapter(source: Source, folder: Path) -> Exported:
    """Fill a folder with an adapter that plain PEFT loads, and check its probabilities.

    Args:
        source: A run of label_words, distill or head with an adapter.
        folder: To fill.

    Raises:
        TaskfitError: If it cannot be exact, or the result says something else.
    """
    model, _ = source.load()
    own = str(source.saved["dtype"])
    narrow = source.outputs(model)
    exact = "float32" if widen(model) else own
    classifier = source.classifier(model)
    method, temperature = classifier.method, classifier.only.calibration.temperature
    assert isinstance(method, TreeMethod)
    pairs = [("written and in memory", exact, source.outputs(model))]
    if exact != own:
        pairs.append((f"export and run in {own}", own, narrow))
    classes = class_settings(model, classifier.task)
    weight, bias = read_linear(classifier)
    weight, checks = bias_in_weight(classifier, weight, bias, source.measured(BIAS_TEXTS))
    entry = find_entry(method.encoder, padded(model.tokenizer), source.examples)
    base = model.tree.model.name_or_path
    is_on_hub = "/" in source.base and not Path(source.base).expanduser().exists()
    _write(source.folder / ADAPTER, folder, weight, base=source.base if is_on_hub else base)
    entry.save(folder)
    del model, method, classifier
    free_memory()
    inputs = [entry.texts(source.examples[place]) for place in entry.places]

    def outputs(dtype: str) -> FloatArray:
        load = AutoModelForSequenceClassification.from_pretrained
        written, _ = load_whole(load, base, source.base, heads=True, dtype=DTYPES[dtype], **classes)
        load_adapter(written, folder)
        return model_probabilities(written.eval(), folder, inputs)

    places = list(entry.places)
    for what, dtype, before in pairs:
        check = compare(before[places], outputs(dtype), what=what, dtype=dtype)
        checks.append(check.require("the change to an adapter for sequence classification"))
    use = {**entry.use, "dtype": own, "classes": {"num_labels": len(weight), **classes}}
    return Exported(checks, score_notes(entry, temperature), use=use)


def _write(adapter: Path, folder: Path, weight: Tensor, *, base: str) -> None:
    """Copy an adapter, with the layer of the scores, (L, D), as a module that is saved whole."""
    config: dict[str, Any] = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    changed = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    write_json_atomic(folder / CONFIG, {**config, **changed, "base_model_name_or_path": base})
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    # These few numbers stay in float32; who loads them in 16 bits rounds them then.
    save_file(
        {**weights, SCORE: weight.float().contiguous()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
