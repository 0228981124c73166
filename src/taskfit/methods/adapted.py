"""A language model whose weights are trained, in full or by an adapter, whatever the loss."""

from pathlib import Path

from peft import PeftModel
from torch import nn

from taskfit.methods.method import Trainable
from taskfit.models.adapters import (
    add_adapter,
    enable_gradient_checkpointing,
    fill_adapter,
    save_weights,
    trainable_parameters,
)
from taskfit.models.causal_model import CausalModel
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.load import LoadedModel
from taskfit.models.quantize import count_parameters
from taskfit.settings import RunSettings


class AdaptedModel(Trainable):
    """What training in steps needs of a causal language model under the token tree.

    Attributes:
        model: The model with its tokenizer.
        adapter: Its adapter; None before `put_adapter`, and where all weights are trained.
    """

    def __init__(
        self, model: LoadedModel, settings: RunSettings, *, start: Path | None = None
    ) -> None:
        """Bind to a model; nothing in it changes before `put_adapter`.

        Args:
            model: The model; where a whole model goes on in training, that one.
            settings: All settings.
            start: Folder of the adapter that training goes on from; None: a new one.
        """
        self.model = model
        self.adapter: PeftModel | None = None
        self._settings = settings
        self._start = start

    @property
    def module(self) -> nn.Module:
        """Return transformers' model."""
        module: nn.Module = self.model.tree.model
        return module

    @property
    def tree(self) -> CausalModel:
        """Return the model that runs the trees."""
        return self.model.tree

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's weights, adapters with them."""
        return count_parameters(self.model.tree.model)

    def put_adapter(self) -> None:
        """Put the adapter on the model, unless it is there or all weights are trained.

        Raises:
            CheckpointError: If the one to go on from does not fit the model.
        """
        self.model.tree.lean.forget()
        if self.adapter is not None:
            return
        model, settings = self.model.tree.model, self._settings
        self.adapter = add_adapter(model, settings.adapter, seed=settings.seed)
        if self.adapter is not None and self._start is not None:
            fill_adapter(self.adapter, self._start)

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Put adapters on the model, or make its weights trainable; return them by name."""
        self.put_adapter()
        tree, model = self.model.tree, self.model.tree.model
        tree.freeze_below(
            first_trained_layer(tree.num_layers, self._settings.adapter.trained_layers)
        )
        if self._settings.training.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return trainable_parameters(model)

    def compile(self) -> None:
        """Compile the decoder layers."""
        self.model.tree.compile_layers()

    def tokens_run(self) -> int:
        """Return the unique tokens run through the decoder so far."""
        return self.model.tree.num_tokens_run

    def save_weights(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, or the whole model."""
        save_weights(self.model.tree.model, self.adapter, self.model.tokenizer, folder)

    def release(self) -> bool:
        """Unload the adapter; return whether the model is as it was before."""
        self.model.tree.lean.forget()
        if self.adapter is None:
            return False
        self.adapter.unload()
        self.model.tree.freeze_below(0)
        self.model.tree.model.requires_grad_(False)
        self.adapter = None
        return True
