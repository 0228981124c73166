"""Questions that nothing was fitted to, asked of a model by a prompt.

All questions about a state are branches of one token tree under it: none of them sees another, and
the state runs once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import softmax

from taskfit.data import Example
from taskfit.errors import TaskfitError
from taskfit.methods.reading import PrefixCache, run_in_trees, static_start
from taskfit.methods.scoring import JOINT, scores_per_token
from taskfit.models.load import LoadedModel
from taskfit.models.whole import require_finite
from taskfit.serve.own_questions import NOUL, part_of_text, too_long
from taskfit.serve.work import Content, Question, RequestError
from taskfit.tasks import EncodedExample, PromptEncoder, Task, option_orders
from taskfit.tasks.questions import YES_NO, Option, Questionnaire
from taskfit.tasks.questions import Question as Asked
from taskfit.tasks.task import default_words
from taskfit.tree import unique_tokens

STATE = "state"
# Clients repeat their questions; of each, words are tokenized and compared once.
NUM_KEPT = 256
# What is asked where a question has no words.
ASKED = {
    "choice": "Which of the options fits?",
    "noul": "Is that so?",
    "score": "Which of the levels fits?",
}


@dataclass(frozen=True, slots=True)
class FreeQuestion:
    """A question about a state as token ids.

    Attributes:
        options: Names of its options.
        encoded: Prompt and words of the options, for each order in which the prompt lists them;
            empty: there is but one option.
        encoder: What made the first.
    """

    options: tuple[str, ...]
    encoded: tuple[EncodedExample, ...] = ()
    encoder: PromptEncoder | None = None


class FreeQuestions:
    """Asks a model questions of any words and options.

    Attributes:
        max_length: Most tokens of a prompt with its longest option.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_length: int | None = None,
        column: str = STATE,
        instruction: str = "",
        num_orders: int = 1,
    ) -> None:
        """Bind to a model.

        Args:
            model: The model.
            max_length: Most tokens of a prompt, where that is less than the model was made for.
            column: What a state is called in the prompt: runs of several questions were trained in
                prompts like these, with a name of their own.
            instruction: Stands first in the prompt.
            num_orders: Orders of a question's options whose probabilities are averaged; see
                `taskfit.tasks.option_orders`.
        """
        limit = model.tree.max_length
        self._column, self._instruction = column, instruction
        self._num_orders = num_orders
        self.max_length = min(limit, max_length or limit)
        self._model = model
        first = self._task(Question("noul", "", ()))
        self._first = PromptEncoder(
            model.tokenizer, first, [], max_length=self.max_length, marks_ends=True
        )
        self._prefixes = PrefixCache(model.tree, self._first)
        self._num_static = len(static_start(self._first))
        self._compiled = lru_cache(NUM_KEPT)(self._compile)

    def encode(
        self, state: Content, question: Question, *, shorten: bool, where: tuple[str | int, ...]
    ) -> tuple[FreeQuestion, bool]:
        """Return a question about a state as tokens, and whether the state lost its end.

        Raises:
            RequestError: 422 for a question that cannot be asked, or a state that is too long.
        """
        names = tuple(option.name for option in question.options)
        if len(names) == 1:
            return FreeQuestion(names), False
        try:
            encoders = self._compiled(question)
            example = Example(STATE, {self._column: self._rendered(state)})
            items = tuple(encoder.encode([example])[0] for encoder in encoders)
        except TaskfitError as error:
            found = str(error).removeprefix("Questions request: question 'question': ")
            raise RequestError(422, f"It cannot be asked so: {found}", where=where) from error
        cut = max(item.num_tokens_cut for item in items)
        if cut and not shorten:
            tokens = max(item.num_tokens + item.num_tokens_cut for item in items)
            raise too_long(tokens, self.max_length, (STATE,))
        return FreeQuestion(names, items, encoders[0]), bool(cut)

    def count(self, questions: Sequence[FreeQuestion]) -> tuple[int, int]:
        """Return the tokens of questions about a state beyond the cached prefix, and all."""
        items = [item for one in questions for item in one.encoded]
        if not items:
            return 0, 0
        skip = self._num_static
        run = unique_tokens([s for item in items for s in _sequences(item, skip)])
        return run, run + skip

    def probabilities(
        self, groups: Sequence[Sequence[FreeQuestion]]
    ) -> list[list[dict[str, float]]]:
        """Return option -> probability for the questions of each group, all as token trees.

        Raises:
            NotFiniteError: If scores are not finite.
        """
        result = [[dict.fromkeys(one.options, 1.0) for one in group] for group in groups]
        asked = [place for place, group in enumerate(groups) if any(q.encoded for q in group)]
        if not asked:
            return result
        items = [[item for q in groups[place] for item in q.encoded] for place in asked]
        prefix = self._prefixes.shared_by([item for group in items for item in group])
        skip = prefix.length if prefix else 0

        def run(chosen: list[int]) -> None:
            found = [item for i in chosen for item in items[i]]
            every = [range(len(item.completions)) for item in found]
            # Between options of one token each, the normaliser over the vocabulary cancels.
            several = any(len(ids) > 1 for item in found for ids in item.completions)
            joint = JOINT.log_probs(
                self._model.tree, found, every, prefix=prefix, normalize=several
            )
            require_finite(joint, ["a question"] * len(joint))
            scores = iter(np.split(joint.double().cpu().numpy(), np.cumsum(list(map(len, every)))))
            for i in chosen:
                for place, question in enumerate(groups[asked[i]]):
                    if question.encoded:
                        found_of = [next(scores) for _ in question.encoded]
                        result[asked[i]][place] = _shares(question, found_of)

        sequences = [[s for item in group for s in _sequences(item, skip)] for group in items]
        names = ["a request"] * len(items)
        run_in_trees(self._model.tree, sequences, run, token_budget=None, names=names)
        return result

    def first_prompt(self, question: FreeQuestion) -> tuple[list[int], int, int]:
        """Return the ids of a prompt, and where the state starts and ends in them."""
        if question.encoder is None:
            return [], 0, 0
        first = question.encoded[0]
        return first.prompt_ids.tolist(), *part_of_text(question.encoder, first)

    def decode(self, token: int) -> str:
        """Return a token's characters."""
        return str(self._model.tokenizer.decode([token]))

    def _compile(self, question: Question) -> tuple[PromptEncoder, ...]:
        """Return the encoder of each order of the options, the given one first."""
        task = self._task(question)
        if not task.chat:
            # What clients ask stands in the line itself.
            line = self._first.text.shield(task.template.line)
            task = replace(task, template=replace(task.template, line=line))
        if question.kind == "score":  # levels stay in a row
            task = replace(task, levels=tuple(map(float, range(len(task.labels)))))
        orders = option_orders(task, self._num_orders, seed=0)
        return tuple(self._first.for_task(one, demonstrations=[]) for one in orders)

    def _rendered(self, state: Content) -> str:
        """Return a state as the model reads it: text as it stands, JSON on one line."""
        if isinstance(state, Mapping) and list(state) == [self._column]:
            text = state[self._column]
            return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        return state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)

    def _task(self, question: Question) -> Task:
        """Return a question as a task over one column, its options in their order."""
        names = [option.name for option in question.options]
        words = default_words(names)
        if question.kind == "noul":
            words = {name: f" {word}" for name, word in zip(NOUL, YES_NO, strict=True)}
            names = list(NOUL)
        told = {option.name: option.description for option in question.options}
        options = tuple(Option(name, (words[name],), told.get(name, "")) for name in names)
        ask = question.instructions.strip() or ASKED[question.kind]
        # A choice to the compiler: kinds differ in what is done with the probabilities alone.
        asked = Asked("question", ask, "choice", f"answer to {self._column}", options)
        columns = (self._column,)
        return Questionnaire("request", 1, columns, (asked,), self._instruction).tasks["question"]


def _sequences(item: EncodedExample, skip: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return JOINT.sequences(item, range(len(item.completions)), skip=skip)


def _shares(
    question: FreeQuestion, scores: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]]
) -> dict[str, float]:
    """Return the mean probability of each option over the orders in which they are listed."""
    assert question.encoder is not None
    if scores_per_token(question.encoder, None):
        scores = [
            one / [len(ids) for ids in item.completions]
            for one, item in zip(scores, question.encoded, strict=True)
        ]
    shares = np.mean([softmax(one) for one in scores], axis=0)
    return dict(zip(question.options, shares.tolist(), strict=True))
