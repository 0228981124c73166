"""Several questions about one text as a method: bound to a model, trained together, read together.

Legend: N examples, L_q labels of question q.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.methods.calibration import apply_prior
from taskfit.methods.losses import balanced_weights
from taskfit.methods.method import Advance, MethodContext
from taskfit.methods.questions import QuestionEncoders, QuestionLoss, QuestionScorer
from taskfit.methods.tree_method import prompt_encoder
from taskfit.models import (
    LoadedModel,
    add_adapter,
    count_parameters,
    enable_gradient_checkpointing,
    save_weights,
    trainable_parameters,
)
from taskfit.settings import RunSettings
from taskfit.tasks import PromptEncoder
from taskfit.tasks.questions import AnsweredExample, Questionnaire

FloatArray = NDArray[np.float64]


class QuestionMethod:
    """Reads the answers to all questions off the LM head; trains them together if wanted.

    Attributes:
        settings: All settings of the run.
        questionnaire: The questions.
        model: The model.
        encoders: One a question.
        scorer: Scores texts.
    """

    def __init__(
        self, settings: RunSettings, questionnaire: Questionnaire, model: LoadedModel
    ) -> None:
        """Make encoders and scorer.

        Raises:
            PromptError: If the words of a question cannot be told apart by the model's tokens.
        """
        self.settings = settings
        self.questionnaire = questionnaire
        self.model = model
        encoders: dict[str, PromptEncoder] = {}
        for name, task in questionnaire.tasks.items():
            try:
                context = MethodContext(settings, task, (), model)
                encoders[name] = prompt_encoder(context, task, ())
            except PromptError as error:
                raise PromptError(f"Question {name}: {error}") from error
        self.encoders = QuestionEncoders(encoders)
        self.scorer = QuestionScorer(
            model.tree, self.encoders, token_budget=settings.training.score_token_budget
        )
        self._adapter: PeftModel | None = None

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> dict[str, FloatArray]:
        """Return each label's share among the labels of its question, question -> (N, L_q)."""
        found = self.scorer.log_probs(examples, advance=advance)
        return {name: apply_prior(log_probs, None) for name, log_probs in found.items()}

    def objective(self, train: Sequence[AnsweredExample]) -> QuestionLoss:
        """Return the loss; class weights, where wanted, are measured on the training examples."""
        return QuestionLoss(
            self.model.tree,
            self.encoders,
            weights={question.name: question.weight for question in self.questionnaire.questions},
            class_weights=self._class_weights(train),
            focal_gamma=self.settings.method.focal_gamma,
        )

    def _class_weights(self, train: Sequence[AnsweredExample]) -> dict[str, Tensor] | None:
        if self.settings.method.class_weights == "none":
            return None
        weights = {}
        for name, encoder in self.encoders.by_name.items():
            labels = encoder.task.label_names
            targets = [example.example(name).target_vector(labels) for example in train]
            known = np.stack([target for target in targets if target is not None])
            balanced = torch.from_numpy(balanced_weights(known, multi_label=False))
            weights[name] = balanced.float().to(self.model.tree.device)
        return weights

    @property
    def module(self) -> nn.Module:
        """Return transformers' model."""
        module: nn.Module = self.model.tree.model
        return module

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Put adapters on the model, or make all its weights trainable; return them by name."""
        model = self.model.tree.model
        self._adapter = add_adapter(model, self.settings.adapter, seed=self.settings.seed)
        if self.settings.training.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return trainable_parameters(model)

    def compile(self) -> None:
        """Compile the decoder layers."""
        self.model.tree.compile_layers()

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

    def tokens_run(self) -> int:
        """Return the unique tokens run through the decoder so far."""
        return self.model.tree.num_tokens_run

    def save_weights(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, or the whole model."""
        save_weights(self.model.tree.model, self._adapter, self.model.tokenizer, folder)

    def rendered(self, example: AnsweredExample) -> list[str]:
        """Return an example's prompts as the model sees them, what is learned in guillemets."""
        decode = self.model.tokenizer.decode
        shown = []
        for item in self.encoders.encode_answered([example]):
            for name, branch in item.branches.items():
                owners = self.encoders.label_of_candidate[name]
                gold = owners.index(branch.label_index) if branch.label_index is not None else 0
                answer = "".join(f"«{decode([int(i)])}»" for i in branch.completions[gold])
                shown.append(f"{item.id}: {decode(branch.prompt_ids.tolist())}{answer}")
        return shown

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's weights, adapters with them."""
        return count_parameters(self.model.tree.model)
