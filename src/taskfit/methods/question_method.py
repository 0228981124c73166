"""Several questions about one text as a method: bound to a model, trained together, read together.

Legend: N examples, L_q labels of question q.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.method_settings import LabelWordsSettings
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.branches import word_reader
from taskfit.methods.calibration import apply_prior
from taskfit.methods.losses import balanced_weights
from taskfit.methods.method import Advance, MethodContext
from taskfit.methods.questions import QuestionEncoders, QuestionLoss, QuestionScorer
from taskfit.methods.tree_method import prompt_encoder
from taskfit.models.load import LoadedModel
from taskfit.settings import RunSettings
from taskfit.tasks import PromptEncoder
from taskfit.tasks.questions import AnsweredExample, Questionnaire

FloatArray = NDArray[np.float64]


class QuestionMethod(AdaptedModel):
    """Reads the answers to all questions off the LM head; trains them together if wanted.

    Attributes:
        settings: All settings of the run.
        questionnaire: The questions.
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
        super().__init__(model, settings)
        self.settings = settings
        self.questionnaire = questionnaire
        encoders: dict[str, PromptEncoder] = {}
        for name, task in questionnaire.tasks.items():
            try:
                context = MethodContext(settings, task, (), model)
                encoders[name] = prompt_encoder(context, task, ())
            except PromptError as error:
                raise PromptError(f"Question {name}: {error}") from error
        words = word_reader(settings.method, end_id=model.tokenizer.eos_token_id)
        self.encoders = QuestionEncoders(encoders, words=words)
        self.scorer = QuestionScorer(
            model.tree, self.encoders, token_budget=settings.training.score_token_budget
        )

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
            focal_gamma=self._trained.focal_gamma,
        )

    @property
    def _trained(self) -> LabelWordsSettings:
        method = self.settings.method
        assert isinstance(method, LabelWordsSettings), "in_context trains nothing"
        return method

    def _class_weights(self, train: Sequence[AnsweredExample]) -> dict[str, Tensor] | None:
        if self._trained.class_weights == "none":
            return None
        weights = {}
        for name, encoder in self.encoders.by_name.items():
            labels = encoder.task.label_names
            targets = [example.example(name).target_vector(labels) for example in train]
            known = np.stack([target for target in targets if target is not None])
            balanced = torch.from_numpy(balanced_weights(known, multi_label=False))
            weights[name] = balanced.float().to(self.model.tree.device)
        return weights

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

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
