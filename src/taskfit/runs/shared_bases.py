"""Base models in memory, each once, with the adapters of all runs that rest on it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel

from taskfit.models.adapters import load_adapter
from taskfit.models.identity import describe_model
from taskfit.models.load import LoadedModel, load_model, resolve_device, resolve_dtype
from taskfit.settings import RunSettings


@dataclass(frozen=True, slots=True)
class _Key:
    """What two runs must have alike to share a model: its content and the form it is held in."""

    content: str
    dtype: torch.dtype
    device: torch.device
    quantization: str


@dataclass(slots=True)
class _Base:
    model: LoadedModel
    adapters: PeftModel | None = None
    num_adapters: int = 0


class SharedBases:
    """Loads the base of each run, or lends the one that is there already.

    Runs whose own weights are a whole model share nothing; they do not come here.
    """

    def __init__(self) -> None:
        """Nothing is loaded before it is asked for."""
        self._bases: dict[_Key, _Base] = {}

    @property
    def num_bases(self) -> int:
        """Return how many models are in memory."""
        return len(self._bases)

    @property
    def num_adapters(self) -> int:
        """Return the most adapters that one of them has."""
        return max((base.num_adapters for base in self._bases.values()), default=0)

    def lend(self, settings: RunSettings, *, adapter: Path | None = None) -> LoadedModel:
        """Return a run's model: the shared one, seen through the run's own adapter.

        Args:
            settings: Of the run; name the model as it is found here.
            adapter: Folder of the adapter; None: the base as it is.

        Raises:
            TaskfitError: If the model cannot be had, or the adapter does not fit it.
        """
        base = self._base(settings)
        name = ""
        if adapter is not None:
            name = f"adapter{base.num_adapters}"
            base.num_adapters += 1
            base.adapters = load_adapter(
                base.model.tree.model, adapter, name=name, beside=base.adapters
            )
            base.model.tree.model.eval()
        tree = base.model.tree.over(base.model.tree.model, adapter=name)
        model = settings.model
        return replace(base.model, tree=tree, name=model.name, revision=model.revision)

    def _base(self, settings: RunSettings) -> _Base:
        model, adapter = settings.model, settings.adapter
        device = resolve_device(model.device)
        in_four_bits = adapter.weights == "qlora"
        try:
            content = describe_model(model.name, model.revision)
        except OSError:
            content = f"{model.name} {model.revision}"  # loading says what is wrong
        key = _Key(
            content,
            resolve_dtype(model.dtype, device),
            device,
            f"nf4 {adapter.double_quantization}" if in_four_bits else "",
        )
        if model.dtype == "auto":  # one that is there already will do
            for other, base in self._bases.items():
                if replace(other, dtype=key.dtype) == key:
                    return base
        if key not in self._bases:
            self._bases[key] = _Base(load_model(model, quantization=adapter))
        return self._bases[key]
