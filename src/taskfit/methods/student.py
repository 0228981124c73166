"""What a student learns from, whoever teaches: divergence from a distribution over its labels.

Legend: N examples, L labels, R nodes at which the two are compared, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.nn import functional

from taskfit.data import Example
from taskfit.methods.method import FloatArray
from taskfit.methods.objective import TreeObjective
from taskfit.methods.scoring import LabelScorer, sum_over_words
from taskfit.models.causal_model import CausalModel
from taskfit.models.prefix import Prefix
from taskfit.models.transfer import on_device
from taskfit.tasks import EncodedExample
from taskfit.tree import IntArray

# Before the logarithm: what a teacher rules out adds nothing to the divergence, and not NaN.
SMALLEST = 1e-30


@dataclass(frozen=True, slots=True)
class DistillItem(EncodedExample):
    """A text encoded for the student.

    Attributes:
        example: The text, for a teacher whose context may change.
        taught: What a teacher outside says of it, (L,); None: the teacher is asked in training.
    """

    example: Example = field(kw_only=True)
    taught: FloatArray | None = field(default=None, kw_only=True)


class StudentObjective(TreeObjective[DistillItem]):
    """T^2 KL(teacher || student) at the answer (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Over the labels, whose distribution is that of their words' joint probabilities.
    """

    def __init__(self, student: LabelScorer, *, temperature: float) -> None:
        """Bind the student.

        Args:
            student: Model in training and encoder without the teacher's context.
            temperature: T, divides the scores of both.
        """
        self.student = student
        self.model = student.model
        self.temperature = temperature
        self._every = list(range(len(student.label_of_candidate)))

    def sequences(self, item: DistillItem) -> list[IntArray]:
        """Return the student's prompt with all label words."""
        return self.student.words.sequences(item, self._every)

    def loss_sum(self, items: Sequence[DistillItem]) -> Tensor:
        """Return the summed divergence of examples from what a teacher outside says (nats)."""
        taught = np.stack([item.taught for item in items if item.taught is not None])
        theirs = on_device(np.log(np.maximum(taught, SMALLEST)), self.model.device)
        ours = self._label_scores(self.model, items, None)
        return divergence(theirs, ours, temperature=self.temperature).sum() * self.temperature**2

    def _label_scores(
        self, model: CausalModel, items: Sequence[EncodedExample], prefix: Prefix | None
    ) -> Tensor:
        """Return the joint log-probability of each label's words, (N, L)."""
        owners = self.student.label_of_candidate
        joint = self.student.words.log_probs(
            model, items, [self._every] * len(items), prefix=prefix
        )
        return sum_over_words(joint.view(len(items), -1), owners, max(owners) + 1)


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
