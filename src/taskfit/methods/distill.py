"""Context distillation: a student without the context learns what a teacher says with it.

Legend: N examples, L labels, R nodes at which the two are compared, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from taskfit.data import Example
from taskfit.errors import DataError, PromptError, SettingsError
from taskfit.method_settings import DistillSettings
from taskfit.methods.calibration import apply_prior, text_prior
from taskfit.methods.method import Advance, FloatArray, MethodContext
from taskfit.methods.objective import FixedTree, Objective, TreeObjective
from taskfit.methods.scoring import (
    LabelScorer,
    ReadPlan,
    candidate_log_probs,
    read_plan,
    sequences_of,
    sum_over_words,
)
from taskfit.methods.teacher import Redraw, Teacher, student_task
from taskfit.methods.tree_method import TreeMethod, prompt_encoder
from taskfit.models.attention import KeyValueCache
from taskfit.models.tree_model import TreeModel
from taskfit.tasks import EncodedExample
from taskfit.tree.build import IntArray

# Rows of full-vocabulary scores in memory at once, for teacher and student each.
LOGIT_ROWS = 128


@dataclass(frozen=True, slots=True)
class DistillItem:
    """A text for both: encoded for the student; the teacher's context may change.

    Attributes:
        example: The text; its label is not looked at.
        student: Its prompt without context.
    """

    example: Example
    student: EncodedExample

    @property
    def id(self) -> str:
        """Return the example's id."""
        return self.example.id

    @property
    def num_tokens(self) -> int:
        """Return the student's tokens."""
        return self.student.num_tokens

    @property
    def num_tokens_cut(self) -> int:
        """Return the tokens by which the student's text was shortened."""
        return self.student.num_tokens_cut


class Distill(TreeMethod):
    """Trains the prompt's effect into the weights; predicts without the context.

    Snell et al. 2022 (arXiv:2209.15189); Askell et al. 2021 (arXiv:2112.00861), section 2.
    """

    needs_labels = False
    settings: DistillSettings

    def __init__(self, context: MethodContext) -> None:
        """Make the student's encoder.

        Raises:
            SettingsError: If there is no context to distil, or calibration does not suit it.
        """
        task, settings = context.task, context.settings.method
        assert isinstance(settings, DistillSettings)
        if task.num_demonstrations == 0 and (
            settings.student_instruction or not task.template.instruction
        ):
            raise SettingsError(
                "distill needs a context that the teacher sees and the student does not, and there "
                "is none: no demonstrations, and no instruction that only the teacher has. Set "
                "method.num_demonstrations, or task.instruction without method.student_instruction."
            )
        if settings.sampling == "balanced" and context.settings.data.unlabeled is not None:
            raise SettingsError(
                "method.sampling=balanced draws texts by their labels, and those of data.unlabeled "
                "have none. Leave one of them out."
            )
        _check_calibration(settings)
        encoder = prompt_encoder(
            context, student_task(task, keep_instruction=settings.student_instruction), []
        )
        super().__init__(context, encoder)
        budget = context.settings.training.score_token_budget
        self.scorer = LabelScorer(self.model.tree, encoder, token_budget=budget)
        self._pool: list[Example] = []
        self._log_prior: FloatArray | None = None

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Keep what redrawn contexts are taken from, and measure the teacher's prior.

        Raises:
            DataError: If there are no texts to measure it on.
        """
        labels = set(self.task.label_names)
        labelled = [example for example in train if example.label in labels]
        self._pool = [*self.context.demonstrations, *labelled]
        if self.settings.calibration == "batch":
            texts = [*train, *validation][: self.context.settings.data.max_validation]
            if not texts:
                raise DataError(
                    "method.calibration=batch needs training texts (their labels are not used). "
                    "Give --data, or leave the calibration out."
                )
            encoder = prompt_encoder(self.context, self.task, self.context.demonstrations)
            budget = self.context.settings.training.score_token_budget
            teacher = LabelScorer(self.model.tree, encoder, token_budget=budget)
            self._log_prior = text_prior(teacher.log_probs, texts)

    def encode(self, examples: Sequence[Example]) -> list[DistillItem]:
        """Encode texts for the student; labels are dropped."""
        bare = [Example(example.id, example.texts) for example in examples]
        return [
            DistillItem(example, student)
            for example, student in zip(bare, self.scorer.encoder.encode(bare), strict=True)
        ]

    def objective(self) -> Objective[DistillItem]:
        """Return the divergence of the student from the teacher."""
        settings = self.settings
        teacher = Teacher(
            self.model.tree,
            self.adapter,
            kind=settings.teacher,
            encoder=prompt_encoder(self.context, self.task, self.context.demonstrations),
        )
        return DistillLoss(
            self.scorer,
            teacher,
            over=settings.loss or "labels",
            temperature=settings.temperature,
            log_prior=self._log_prior,
            redraw=(
                Redraw(self._pool, self.task, self.context.settings.seed)
                if settings.contexts == "redrawn"
                else None
            ),
        )

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the student's label probabilities, (N, L)."""
        return apply_prior(self.scorer.log_probs(examples, advance=advance), None)

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

    def supervised(self, item: EncodedExample) -> str:
        """Return what stands for the teacher's answer."""
        return " «the teacher's distribution»"


class DistillLoss(TreeObjective[DistillItem]):
    """The training objective of `distill`: T^2 KL(teacher || student) at the answer.

    Hinton et al. 2015 (arXiv:1503.02531), section 2. Over the labels, both distributions are those
    of the label words' joint probabilities. Over the vocabulary, the next-token distributions are
    compared at the answer's first token and, where label words have several, at every later branch
    of the tree of labels, weighted by the probability with which the teacher gets there; this is
    the chain rule of the divergence over answers, cut off where no label goes on.
    """

    def __init__(
        self,
        student: LabelScorer,
        teacher: Teacher,
        *,
        over: Literal["labels", "vocabulary"],
        temperature: float,
        log_prior: FloatArray | None = None,
        redraw: Redraw | None = None,
    ) -> None:
        """Bind student and teacher.

        Args:
            student: Model in training and encoder without context.
            teacher: Model and encoder with context.
            over: What is compared.
            temperature: Divides the scores of both.
            log_prior: Subtracted from the teacher's scores of the labels, (L,); None: nothing.
            redraw: Draws the teacher's context for each step; None: it stays.
        """
        self.student = student
        self.teacher = teacher
        self.over = over
        self.temperature = temperature
        self.log_prior = log_prior
        self.redraw = redraw

    def start_step(self, step: int) -> None:
        """Draw the step's context."""
        self.teacher.weights_changed()
        if self.redraw is not None:
            shown = self.redraw.demonstrations(step)
            self.teacher.use(self.teacher.encoder.for_task(self.redraw.task, demonstrations=shown))

    def sequences(self, item: DistillItem) -> list[IntArray]:
        """Return the student's prompt with all label words."""
        return sequences_of(item.student, range(len(self.student.label_of_candidate)))

    def fixed_trees(self, items: Sequence[DistillItem], token_budget: int) -> Iterator[FixedTree]:
        """Return the student's trees, and the teacher's unless its context is drawn anew."""
        yield from super().fixed_trees(items, token_budget)
        if self.redraw is not None or self.teacher.model is not self.student.model:
            return
        every = list(range(len(self.student.label_of_candidate)))
        for piece in self.plan(items, token_budget):
            with self.teacher.reading():
                taught, prefix = self.teacher.encode([items[i].example for i in piece])
            skip = prefix.length if prefix else 0
            tree = read_plan(taught, [every] * len(taught), skip=skip).tree
            yield FixedTree(tree, prefix, 0)

    def loss_sum(self, items: Sequence[DistillItem]) -> Tensor:
        """Return the summed divergence of examples, run as one tree for each of the two (nats)."""
        students = [item.student for item in items]
        with self.teacher.reading():
            teachers, prefix = self.teacher.encode([item.example for item in items])
        for student, taught in zip(students, teachers, strict=True):
            if [c.tolist() for c in student.completions] != [
                c.tolist() for c in taught.completions
            ]:
                raise PromptError(
                    f"{student.id}: the label words are other tokens with context than without, so "
                    "the answers cannot be aligned. End the template with punctuation, such as a "
                    "colon, and let label words start with a space."
                )
        compare = self._over_labels if self.over == "labels" else self._over_vocabulary
        return compare(students, teachers, prefix) * self.temperature**2

    def _over_labels(
        self,
        students: Sequence[EncodedExample],
        teachers: Sequence[EncodedExample],
        prefix: KeyValueCache | None,
    ) -> Tensor:
        with self.teacher.reading():
            theirs = self._label_scores(self.teacher.model, teachers, prefix)
        if self.log_prior is not None:
            theirs = theirs - torch.from_numpy(self.log_prior).to(theirs)
        ours = self._label_scores(self.student.model, students, None)
        return divergence(theirs, ours, temperature=self.temperature).sum()

    def _label_scores(
        self, model: TreeModel, items: Sequence[EncodedExample], prefix: KeyValueCache | None
    ) -> Tensor:
        owners = self.student.label_of_candidate
        every = list(range(len(owners)))
        joint = candidate_log_probs(model, items, [every] * len(items), prefix=prefix)
        return sum_over_words(joint.view(len(items), -1), owners, max(owners) + 1)

    def _over_vocabulary(
        self,
        students: Sequence[EncodedExample],
        teachers: Sequence[EncodedExample],
        prefix: KeyValueCache | None,
    ) -> Tensor:
        every = [list(range(len(self.student.label_of_candidate)))] * len(students)
        taught = read_plan(teachers, every, skip=prefix.length if prefix else 0)
        own = read_plan(students, every)
        model = self.teacher.model
        with self.teacher.reading():
            theirs = model.hidden(taught.tree, taught.nodes, prefix=prefix)
            rows, targets = (
                torch.from_numpy(a).to(model.device) for a in (taught.rows, taught.targets)
            )
            log_probs = model.token_log_probs(theirs, rows, targets).cpu().numpy()
        tokens, weights = _branches(own, log_probs, len(every[0]))
        ours = self.student.model.hidden(own.tree, own.nodes)
        device = self.student.model.device
        rows_theirs, rows_ours = (
            torch.from_numpy(plan.rows[tokens]).to(device) for plan in (taught, own)
        )
        weight = torch.from_numpy(weights).to(device)
        total = ours.new_zeros((), dtype=torch.float32)
        for part in torch.split(torch.arange(len(tokens), device=device), LOGIT_ROWS):
            with self.teacher.reading():
                wanted = model.logits(theirs[rows_theirs[part]])
            found = checkpoint(self._divergence, wanted, ours[rows_ours[part]], use_reentrant=False)
            total = total + (found * weight[part]).sum()
        return total

    def _divergence(self, teacher_scores: Tensor, hidden: Tensor) -> Tensor:
        scores = self.student.model.logits(hidden)
        return divergence(teacher_scores, scores, temperature=self.temperature)


def divergence(teacher_scores: Tensor, student_scores: Tensor, *, temperature: float) -> Tensor:
    """Return KL(teacher || student) of each row, at a temperature (nats), (R,).

    Args:
        teacher_scores: Before the softmax, (R, V).
        student_scores: Before the softmax, (R, V).
        temperature: Divides both.
    """
    theirs = functional.log_softmax(teacher_scores.float() / temperature, dim=-1)
    ours = functional.log_softmax(student_scores.float() / temperature, dim=-1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)


def _check_calibration(settings: DistillSettings) -> None:
    """Raise unless the teacher's prior can be measured once and belongs to all it says."""
    if not settings.takes_prior:
        return
    given = {
        "method.loss": (settings.word_loss, "labels"),
        "method.teacher": (settings.teacher, "frozen"),
        "method.contexts": (settings.contexts, "fixed"),
    }
    wrong = [f"{name}={found}" for name, (found, wanted) in given.items() if found != wanted]
    if wrong:
        raise SettingsError(
            f"distill with {' and '.join(wrong)}: the prior of the teacher's labels is measured "
            "once, before training, so method.calibration=batch is for loss=labels, "
            "teacher=frozen and contexts=fixed. Change these, or leave it out."
        )


def _branches(
    plan: ReadPlan, log_probs: np.ndarray[tuple[int], np.dtype[np.float32]], num_candidates: int
) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Return one predicted token for each place where an example's answers are read, with weights.

    Args:
        plan: The student's read plan.
        log_probs: The teacher's log-probability of each predicted token, (Y,).
        num_candidates: Candidates of each example.

    Returns:
        Indices of predicted tokens, and the teacher's probability of what stands before each.
    """
    starts = np.flatnonzero(np.diff(plan.owners, prepend=-1))
    before = np.cumsum(log_probs) - log_probs
    before -= np.repeat(before[starts], np.diff(np.append(starts, len(log_probs))))
    places = np.stack((plan.owners // num_candidates, plan.rows), axis=1)
    _, first = np.unique(places, axis=0, return_index=True)
    return first.astype(np.int64), np.exp(before[first]).astype(np.float32)
