"""One served model: a finished run or a bare base, with all that can be asked of it."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from taskfit.data import Example
from taskfit.errors import TaskfitError
from taskfit.models.causal_model import CausalModel
from taskfit.serve.free_questions import FreeQuestion, FreeQuestions
from taskfit.serve.own_questions import Match, OwnQuestions, Probabilities
from taskfit.serve.work import (
    Answers,
    ModelCard,
    Option,
    Part,
    PromptToken,
    Question,
    RequestError,
    StateRequest,
    TextsRequest,
)
from taskfit.serve.writer import Writer


@dataclass(frozen=True, slots=True)
class EncodedJob:
    """A request that is checked and turned into tokens; see `work.Job`.

    Attributes:
        model: Name of the served model.
        num_texts: Texts, or questions of a state.
        num_tokens: Unique tokens to run beyond what is cached.
        num_total: Tokens of all prompts, each once.
        names: Questions of a state in the order in which they were asked; empty for texts.
        examples: What a run's own questions are asked about.
        own: Of a state, question -> the run's own question that it is.
        free: Of a state, question -> one that is asked by a prompt.
        is_shortened: Whether the state lost its end.
        may_shorten: Whether texts may lose their ends.
    """

    model: str
    num_texts: int
    num_tokens: int
    num_total: int
    names: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    own: Mapping[str, Match] = field(default_factory=dict)
    free: Mapping[str, FreeQuestion] = field(default_factory=dict)
    is_shortened: bool = False
    may_shorten: bool = False


class ServedModel:
    """What is served under one name.

    Attributes:
        card: Its description.
        own: The questions that it was fitted to; None: none.
        free: What asks it any others; None: nothing can.
        writer: What writes text with it; None: nothing does.
        tree: The causal language model that it reads or writes with; None: there is none.
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        own: OwnQuestions | None = None,
        free: FreeQuestions | None = None,
        writer: Writer | None = None,
        tree: CausalModel | None = None,
    ) -> None:
        """Put the parts together."""
        self.card = card
        self.own = own
        self.free = free
        self.writer = writer
        self.tree = tree

    def warm_up(self) -> None:
        """Answer a short text and question, so that no client waits for what comes first alone.

        Weights are laid out, kernels are chosen, and prompts that all texts share are read.
        """
        name, jobs = self.card.name, list[EncodedJob]()
        with suppress(TaskfitError):  # a client is told by its answer what these are told
            if self.own is not None:
                text = dict.fromkeys(self.own.columns, "a")
                jobs.append(self.encode_texts(TextsRequest(name, [text], shorten=True)))
            if self.free is not None:
                asked = Question("noul", "", (Option("true"), Option("false")))
                jobs.append(self.encode_state(StateRequest(name, "a", {"asked": asked})))
            self.score(jobs)

    def encode_texts(self, request: TextsRequest) -> EncodedJob:
        """Check texts for the run's own questions.

        Raises:
            RequestError: 422 if it has none, or a text cannot be read.
        """
        if self.own is None:
            raise RequestError(
                422,
                f"{request.model} has no labels of its own: it was not fitted to any. Ask it a "
                "question about a state, or name a fitted run.",
                where=("model",),
            )
        read = self.own.read(request.texts, shorten=request.shorten)
        return EncodedJob(
            model=request.model,
            num_texts=len(read.examples),
            num_tokens=read.num_tokens,
            num_total=read.num_total,
            examples=read.examples,
            may_shorten=request.shorten,
        )

    def encode_state(self, request: StateRequest) -> EncodedJob:
        """Check questions about a state.

        Raises:
            RequestError: 422 for a question that cannot be asked, or a state that cannot be read.
        """
        own: dict[str, Match] = {}
        free: dict[str, FreeQuestion] = {}
        is_shortened = False
        for name, question in request.questions.items():
            match = None if self.own is None else self.own.match(name, question)
            if match is not None:
                own[name] = match
                continue
            where = ("questions", name)
            if self.free is None:
                raise self._unknown(question, where)
            free[name], cut = self.free.encode(
                request.state, question, shorten=request.shorten, where=where
            )
            is_shortened = is_shortened or cut
        examples: tuple[Example, ...] = ()
        counts = [(0, 0)] if self.free is None else [self.free.count(list(free.values()))]
        if own and self.own is not None:
            texts = [self.own.texts_of(request.state)]
            read = self.own.read(texts, shorten=request.shorten, where=("state",))
            examples = read.examples
            counts.append((read.num_tokens, read.num_total))
        return EncodedJob(
            model=request.model,
            num_texts=len(request.questions),
            num_tokens=sum(run for run, _ in counts),
            num_total=sum(total for _, total in counts),
            names=tuple(request.questions),
            examples=examples,
            own=own,
            free=free,
            is_shortened=is_shortened,
            may_shorten=request.shorten,
        )

    def score(self, jobs: Sequence[EncodedJob]) -> list[Answers | Exception]:
        """Answer jobs together: all texts in one call of the run's method, questions in trees.

        Raises:
            Exception: Whatever goes wrong; it is not known with which job.
        """
        texts = [example for job in jobs for example in job.examples]
        found: list[Probabilities] = []
        cut: set[str] = set()
        if texts and self.own is not None:
            found, cut = self.own.probabilities(texts)
        groups = [list(job.free.values()) for job in jobs]
        free = [[] for _ in jobs] if self.free is None else self.free.probabilities(groups)
        rows = iter(found)
        return [
            _answer(job, [next(rows) for _ in job.examples], asked, cut)
            for job, asked in zip(jobs, free, strict=True)
        ]

    def tokens(self, job: EncodedJob) -> list[PromptToken]:
        """Return the first prompt of a job; empty where no tokens are read."""
        if job.names and job.names[0] in job.free:
            assert self.free is not None
            source: OwnQuestions | FreeQuestions = self.free
            ids, start, stop = self.free.first_prompt(job.free[job.names[0]])
        else:
            assert self.own is not None
            source = self.own
            ids, start, stop = self.own.first_prompt(job.examples)
        return [
            PromptToken(source.decode(token), _part(place, start, stop))
            for place, token in enumerate(ids)
        ]

    def _unknown(self, question: Question, where: Sequence[str | int]) -> RequestError:
        known = "nothing"
        if self.own is not None:
            known = "; ".join(
                f"{name} ({', '.join(option.name for option in card.options)})"
                for name, card in self.own.cards.items()
            )
        options = ", ".join(option.name for option in question.options)
        return RequestError(
            422,
            f"{self.card.name} was fitted to questions of its own and cannot be asked others: "
            f"{known}. This one has the options {options}. Ask one of its own, with its words or "
            "none, or another model.",
            where=where,
        )


def _part(place: int, start: int, stop: int) -> Part:
    if place < start:
        return "prompt"
    return "text" if place < stop else "question"


def _answer(
    job: EncodedJob,
    rows: Sequence[Probabilities],
    free: Sequence[Mapping[str, float]],
    cut: Collection[str],
) -> Answers | Exception:
    """Put a job's answer together.

    Args:
        job: The job.
        rows: Probabilities of its examples.
        free: Probabilities of its free questions.
        cut: Ids of examples that lost their end.
    """
    shortened = [i for i, example in enumerate(job.examples) if example.id in cut]
    if shortened and not job.may_shorten:  # only known once the method had chosen its prompt
        return RequestError(
            422,
            "A text is too long for the model with the examples that belong to it. Send less, or "
            "allow it to be shortened.",
            where=("state",) if job.names else ("texts", shortened[0]),
        )
    for place, row in enumerate(rows):
        if any(math.isnan(p) for shares in row.values() for p in shares.values()):
            return RequestError(
                422,
                "The run answers with free text, and what it wrote here names none of its labels.",
                where=("state",) if job.names else ("texts", place),
            )
    if not job.names:
        return Answers(rows, job.num_total, shortened)
    asked = dict(zip(job.free, free, strict=True))
    for name, match in job.own.items():
        shares = rows[0][match.question]
        asked[name] = {option: shares[label] for option, label in match.labels.items()}
    is_shortened = job.is_shortened or bool(shortened)
    return Answers([{name: asked[name] for name in job.names}], job.num_total, [0] * is_shortened)
