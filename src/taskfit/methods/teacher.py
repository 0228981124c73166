"""The two sides of context distillation: the student's task, and the teacher with its context."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from peft import PeftModel

from taskfit.data import Example
from taskfit.methods.reading import PrefixCache
from taskfit.models.causal_model import CausalModel
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.prefix import Prefix
from taskfit.tasks import EncodedExample, PromptEncoder, Task, choose_demonstrations


def student_task(task: Task, *, keep_instruction: bool) -> Task:
    """Return the task as the student sees it: no demonstrations, by default no instruction."""
    instruction = task.template.instruction if keep_instruction else ""
    template = replace(task.template, instruction=instruction)
    return replace(task, template=template, num_demonstrations=0)


def redrawn_demonstrations(
    pool: Sequence[Example], task: Task, seed: int, step: int
) -> list[Example]:
    """Return the demonstrations of a step, as balanced over classes as they can be.

    Args:
        pool: Labelled examples.
        task: Whose labels and number of demonstrations count.
        seed: Seed of all draws.
        step: The optimizer step.
    """
    return choose_demonstrations(
        pool,
        how="balanced",
        num=task.num_demonstrations,
        labels=task.label_names,
        seed=int(np.random.SeedSequence([seed, 5, step]).generate_state(1)[0]),
    )


class Teacher:
    """The model with context, without gradients: as it was before training, or as it is now.

    A frozen teacher under an adapter is the same weights with the adapter switched off; only for
    full fine-tuning the model is copied.
    """

    def __init__(
        self,
        model: CausalModel,
        adapter: PeftModel | None,
        *,
        kind: Literal["frozen", "self"],
        encoder: PromptEncoder,
    ) -> None:
        """Bind to the model in training.

        Args:
            model: The student's model.
            adapter: Its adapter, or None for full fine-tuning.
            kind: Whether the weights are those before training or the current ones.
            encoder: Encodes texts with their context.
        """
        self.kind = kind
        self.encoder = encoder
        self._adapter = adapter
        if kind == "frozen" and adapter is None:
            model = model.over(copy.deepcopy(model.model).requires_grad_(False))
        self.model = model
        self._prefixes = PrefixCache(model, encoder)

    def use(self, encoder: PromptEncoder) -> None:
        """Take another context from here on."""
        self.encoder = encoder
        self._prefixes = PrefixCache(self.model, encoder)

    def weights_changed(self) -> None:
        """Forget keys and values that hang on the weights in training."""
        if self.kind == "self":
            self._prefixes.forget()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Switch to the teacher's weights, without dropout or gradients."""
        adapter = self._adapter if self.kind == "frozen" else None
        off = nullcontext() if adapter is None else adapter.disable_adapter()
        with evaluation_mode(self.model.model), torch.no_grad(), off:
            yield

    def encode(self, examples: Sequence[Example]) -> tuple[list[EncodedExample], Prefix | None]:
        """Return the texts with their context, and the context's keys and values."""
        items = self.encoder.encode(examples)
        return items, self._prefixes.shared_by(items)
