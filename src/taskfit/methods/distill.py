"""Distillation: a student learns what a teacher says, with context or from outside.

Legend: N examples, L labels, R nodes at which the two are compared, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taskfit.data import Example
from taskfit.errors import PromptError, SettingsError
from taskfit.method_settings import DistillSettings
from taskfit.methods.calibration import text_prior
from taskfit.methods.method import FloatArray, MethodContext
from taskfit.methods.objective import FixedTree, Objective
from taskfit.methods.outside_teacher import OutsideTeacher
from taskfit.methods.scoring import LabelScorer, ReadPlan, read_plan
from taskfit.methods.student import DistillItem, StudentObjective, divergence
from taskfit.methods.teacher import Teacher, redrawn_demonstrations, student_task
from taskfit.methods.tree_method import WordMethod, prompt_encoder
from taskfit.models.causal_model import LOGIT_ROWS
from taskfit.models.prefix import Prefix
from taskfit.models.transfer import on_device
from taskfit.tasks import EncodedExample, PromptEncoder, Task
from taskfit.tree import IntArray


class Distill(WordMethod):
    """Trains the prompt's effect, or another model's answers, into the weights.

    Snell et al. 2022 (arXiv:2209.15189); Askell et al. 2021 (arXiv:2112.00861), section 2; of
    another model Hinton et al. 2015 (arXiv:1503.02531).
    """

    needs_labels = False
    settings: DistillSettings

    def __init__(self, context: MethodContext) -> None:
        """Make the student's encoder.

        Raises:
            SettingsError: If there is no context to distil, or settings do not suit the teacher.
        """
        task, settings = context.task, context.settings.method
        assert isinstance(settings, DistillSettings)
        self._outside = OutsideTeacher(context) if settings.is_taught_outside else None
        if self._outside is None:
            _check_context(task, settings)
            _check_calibration(settings)
        is_remote, unlabeled = settings.teacher == "remote", context.settings.data.unlabeled
        if settings.sampling == "balanced" and (is_remote or unlabeled is not None):
            raise SettingsError(
                "method.sampling=balanced draws texts by their labels. Those of data.unlabeled "
                "have none, and method.teacher=remote leaves out texts to which its answer names "
                "no label. Leave it out."
            )
        encoder = prompt_encoder(
            context,
            student_task(task, keep_instruction=settings.keeps_instruction),
            [],
            marks_ends=True,
        )
        super().__init__(context, {"": encoder})
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
            encoder = self._with_context()
            budget = self.context.settings.training.score_token_budget
            teacher = LabelScorer(self.model.tree, encoder, token_budget=budget)
            self._log_prior = text_prior(teacher.log_probs, texts)

    def encode(self, examples: Sequence[Example]) -> list[DistillItem]:
        """Encode texts for the student; labels are dropped. A teacher outside is asked here.

        Raises:
            TaskfitError: If the teacher outside has no answers.
        """
        bare = [example.bare() for example in examples]
        taught: list[FloatArray | None] = [None] * len(bare)
        if self._outside is not None and bare:
            said = self._outside.says(examples)
            is_said = np.isfinite(said[:, 0])
            bare = [example for example, found in zip(bare, is_said, strict=True) if found]
            taught = list(said[is_said])
        return [
            DistillItem(
                s.id, s.prompt_ids, s.completions, None, s.num_tokens_cut, example=e, taught=t
            )
            for e, s, t in zip(bare, self.scorer.encoder.encode(bare), taught, strict=True)
        ]

    def objective(self) -> Objective[DistillItem]:
        """Return the divergence of the student from the teacher."""
        settings = self.settings
        if self._outside is not None:
            return StudentObjective(self.scorer, temperature=settings.temperature)
        teacher = Teacher(
            self.model.tree,
            self.adapter,
            kind="self" if settings.teacher == "self" else "frozen",
            encoder=self._with_context(),
        )
        return DistillLoss(
            self.scorer,
            teacher,
            over=settings.loss or "labels",
            temperature=settings.temperature,
            log_prior=self._log_prior,
            redraw=(
                partial(redrawn_demonstrations, self._pool, self.task, self.context.settings.seed)
                if settings.contexts == "redrawn"
                else None
            ),
        )

    def report(self) -> Mapping[str, Any]:
        """Return what a teacher outside was asked."""
        return {} if self._outside is None else self._outside.report()

    def _with_context(self) -> PromptEncoder:
        """Return the encoder of what the teacher sees."""
        shown = self.context.demonstrations
        return prompt_encoder(self.context, self.task, shown, marks_ends=True)

    def supervised(self, item: EncodedExample) -> str:
        """Return what stands for the teacher's answer."""
        return " «the teacher's distribution»"


class DistillLoss(StudentObjective):
    """The same, of a teacher that is the model with context.

    Over the labels, both distributions are those of the label words' joint probabilities. Over the
    vocabulary, the next-token distributions are
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
        redraw: Callable[[int], list[Example]] | None = None,
    ) -> None:
        """Bind student and teacher.

        Args:
            student: Model in training and encoder without context.
            teacher: Model and encoder with context.
            over: What is compared.
            temperature: Divides the scores of both.
            log_prior: Subtracted from the teacher's scores of the labels, (L,); None: nothing.
            redraw: Returns the teacher's demonstrations for a step; None: they stay.
        """
        super().__init__(student, temperature=temperature)
        self.teacher = teacher
        self.over = over
        self.log_prior = log_prior
        self.redraw = redraw

    def start_step(self, step: int) -> None:
        """Draw the step's context."""
        self.teacher.weights_changed()
        if self.redraw is not None:
            encoder, shown = self.teacher.encoder, self.redraw(step)
            self.teacher.use(encoder.for_task(encoder.task, demonstrations=shown))

    def fixed_trees(self, items: Sequence[DistillItem], token_budget: int) -> Iterator[FixedTree]:
        """Return the student's trees, and the teacher's unless its context is drawn anew."""
        yield from super().fixed_trees(items, token_budget)
        if self.redraw is not None or self.teacher.model is not self.student.model:
            return
        for piece in self.plan(items, token_budget):
            with self.teacher.reading():
                taught, prefix = self.teacher.encode([items[i].example for i in piece])
            skip = prefix.length if prefix else 0
            tree = read_plan(taught, [self._every] * len(taught), skip=skip).tree
            yield FixedTree(tree, prefix, 0)

    def loss_sum(self, items: Sequence[DistillItem]) -> Tensor:
        """Return the summed divergence of examples, run as one tree for each of the two (nats)."""
        with self.teacher.reading():
            teachers, prefix = self.teacher.encode([item.example for item in items])
        for student, taught in zip(items, teachers, strict=True):
            if [c.tolist() for c in student.completions] != [
                c.tolist() for c in taught.completions
            ]:
                raise PromptError(
                    f"{student.id}: the label words are other tokens with context than without, so "
                    "the answers cannot be aligned. End the template with punctuation, such as a "
                    "colon, and let label words start with a space."
                )
        compare = self._over_labels if self.over == "labels" else self._over_vocabulary
        return compare(items, teachers, prefix) * self.temperature**2

    def _over_labels(
        self,
        students: Sequence[EncodedExample],
        teachers: Sequence[EncodedExample],
        prefix: Prefix | None,
    ) -> Tensor:
        with self.teacher.reading():
            theirs = self._label_scores(self.teacher.model, teachers, prefix)
        if self.log_prior is not None:
            theirs = theirs - torch.from_numpy(self.log_prior).to(theirs)
        ours = self._label_scores(self.student.model, students, None)
        return divergence(theirs, ours, temperature=self.temperature).sum()

    def _over_vocabulary(
        self,
        students: Sequence[EncodedExample],
        teachers: Sequence[EncodedExample],
        prefix: Prefix | None,
    ) -> Tensor:
        every = [self._every] * len(students)
        taught = read_plan(teachers, every, skip=prefix.length if prefix else 0)
        own = read_plan(students, every)
        model = self.teacher.model
        with self.teacher.reading():
            theirs = model.hidden(taught.tree, taught.nodes, prefix=prefix)
            rows, targets = (on_device(a, model.device) for a in (taught.rows, taught.targets))
            log_probs = model.token_log_probs(theirs, rows, targets).cpu().numpy()
        tokens, weights = _branches(own, log_probs, len(self._every))
        ours = self.student.model.hidden(own.tree, own.nodes)
        device = self.student.model.device
        rows_theirs, rows_ours = (on_device(plan.rows[tokens], device) for plan in (taught, own))
        weight = on_device(weights, device)
        total = ours.new_zeros((), dtype=torch.float32)
        for part in torch.split(torch.arange(len(tokens), device=device), LOGIT_ROWS):
            with self.teacher.reading():
                taught_scores = model.logits(theirs[rows_theirs[part]])
            found = checkpoint(
                self._divergence, taught_scores, ours[rows_ours[part]], use_reentrant=False
            )
            total = total + (found * weight[part]).sum()
        return total

    def _divergence(self, teacher_scores: Tensor, hidden: Tensor) -> Tensor:
        scores = self.student.model.logits(hidden)
        return divergence(teacher_scores, scores, temperature=self.temperature)


def _check_context(task: Task, settings: DistillSettings) -> None:
    """Raise unless there is something that only the teacher sees."""
    if task.num_demonstrations or (task.template.instruction and not settings.keeps_instruction):
        return
    raise SettingsError(
        "distill needs a context that the teacher sees and the student does not, and there is "
        "none: no demonstrations, and no instruction that only the teacher has. Set "
        "method.num_demonstrations, or task.instruction without method.student_instruction. A "
        "teacher that is another model needs none: method.teacher=remote, or soft_labels."
    )


def _check_calibration(settings: DistillSettings) -> None:
    """Raise unless the teacher's prior can be measured once and belongs to all it says."""
    if not settings.takes_prior:
        return
    given = {
        "method.loss": (settings.word_loss, "labels"),
        "method.teacher": (settings.teacher, "frozen"),
        "method.contexts": (settings.contexts, "fixed"),
    }
    wrong = [f"{name}={found}" for name, (found, needed) in given.items() if found != needed]
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
