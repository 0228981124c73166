"""What is asked of an engine and what it answers: no HTTP here, and no PyTorch.

The wires (`serve/wires/`) turn requests of other projects' shapes into these, the scheduler queues
and batches them, the engine answers them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from taskfit.errors import TaskfitError

Kind = Literal["choice", "noul", "score"]
FinishReason = Literal["stop", "length"]
Part = Literal["prompt", "text", "question"]
# Text, or JSON that is shown to the model as it stands.
Content = str | Mapping[str, Any] | Sequence[Any]
# A text of a run with one text column, or column -> text.
Text = str | Mapping[str, str]


class RequestError(TaskfitError):
    """A request that cannot be answered, with the status that says so.

    Attributes:
        status: Of HTTP, 400 to 504.
        where: Path of the value at fault, such as ("questions", "tone"); may be empty.
    """

    def __init__(self, status: int, message: str, *, where: Sequence[str | int] = ()) -> None:
        """Say what is wrong."""
        super().__init__(message)
        self.status = status
        self.where = tuple(where)


@dataclass(frozen=True, slots=True)
class Option:
    """An answer to choose.

    Attributes:
        name: What the answer is called; the levels of a score are "0", "1", ...; of a noul "true"
            and "false".
        description: When it applies; may be empty.
    """

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a state.

    Attributes:
        kind: choice, noul (yes or no) or score (ordered levels, lowest first).
        instructions: What is asked; may be empty.
        options: At least one, in the order in which they are named; of a noul true, then false.
    """

    kind: Kind
    instructions: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class TextsRequest:
    """Label texts with the own questions of a run.

    Attributes:
        model: Name of the run.
        texts: At least one.
        shorten: Whether a text that is too long may lose its end.
    """

    model: str
    texts: Sequence[Text]
    shorten: bool = False


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Answer questions about one state.

    Attributes:
        model: Name of a run or of the base.
        state: What is asked about.
        questions: Name -> question.
        shorten: Whether a state that is too long may lose its end.
    """

    model: str
    state: Content
    questions: Mapping[str, Question]
    shorten: bool = False


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Go on with a text.

    Attributes:
        model: Name of a tuned generator, or of the base.
        prompt: Text to go on with, or messages (role -> content) for the chat template.
        max_tokens: Most tokens to write; None: what the model's context leaves.
        temperature: 0 takes the most probable token.
        top_p: Share of probability that is sampled from.
        stop: Texts that end the answer; they are not part of it.
        seed: Of sampling; None: a fresh one.
        top_logprobs: How many of the most probable tokens to name at each place; None: no
            log-probabilities at all.
    """

    model: str
    prompt: str | Sequence[Mapping[str, str]]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """Probabilities for each text of a request; a state is one text.

    Attributes:
        probabilities: For each text question -> option -> probability; the question of a run with
            one question is called by its task's label column.
        num_tokens: Tokens of the request (prompts with their texts, each once).
        shortened: Texts (places in the request) that lost their end.
    """

    probabilities: Sequence[Mapping[str, Mapping[str, float]]]
    num_tokens: int
    shortened: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token and its natural log-probability."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What a generator wrote next.

    Attributes:
        text: Of whole characters only; may be empty.
        score: Of the token, where asked for.
        top: The most probable tokens at its place, where asked for.
        finish_reason: None while there is more to come.
        num_prompt_tokens: Tokens of the prompt.
    """

    text: str
    score: TokenScore | None = None
    top: Sequence[TokenScore] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt as the model reads it.

    Attributes:
        text: Its characters.
        part: `prompt` (the same for every text), `text` (of the state) or `question`.
    """

    text: str
    part: Part


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is served under a name.

    Attributes:
        name: What requests call it.
        description: A sentence for people.
        base: Name of the model that it rests on.
        method: Of the run; `none` for a bare base.
        created: Unix time.
        columns: Text columns of a run that labels.
        questions: Its own questions; empty for a bare base or a generator.
        multi_label: Whether a text may have several labels (then probabilities do not sum to 1).
        thresholds: Label -> from which probability on it is given, where a text may have several.
        asks_anything: Whether it answers questions that are not its own.
        generates: Whether it writes text.
        max_length: Most tokens of a prompt with its text.
    """

    name: str
    description: str
    base: str
    method: str
    created: int
    columns: tuple[str, ...] = ("text",)
    questions: Mapping[str, Question] = field(default_factory=dict)
    multi_label: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)
    asks_anything: bool = False
    generates: bool = False
    max_length: int = 0

    def given(self, probabilities: Mapping[str, float]) -> list[str]:
        """Return the labels that a text is given where it may have several, as `predict` does."""
        return sorted(name for name, p in probabilities.items() if p >= self.thresholds[name])


class Job(Protocol):
    """A request that is checked and turned into tokens.

    Attributes:
        model: Name of the served model.
        num_texts: Texts, or questions of a state.
        num_tokens: Unique tokens to run beyond what is cached; what batches are measured in.
    """

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def num_texts(self) -> int: ...  # noqa: D102

    @property
    def num_tokens(self) -> int: ...  # noqa: D102


class Engine(Protocol):
    """Runs over one base in memory."""

    def models(self) -> Sequence[ModelCard]:
        """Return what is served, in the order in which it was named."""

    def encode(self, request: TextsRequest | StateRequest) -> Job:
        """Check a request and turn it into tokens; any thread may call it at any time.

        Raises:
            RequestError: 404 for a model, 422 for a question or text that cannot be served.
        """

    def score(self, jobs: Sequence[Job]) -> Sequence[Answers | Exception]:
        """Answer jobs, of one or several models, together; one thread at a time.

        What goes wrong with one job (or with memory, for all at once) never costs another its
        answer: they are tried in smaller parts, and what is at fault comes back in its place.
        """

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        """Check a request now, and write the answer token by token.

        `next` may be called between calls of `score`, on their thread; closing it frees it.

        Raises:
            RequestError: 404 for a model, 422 for a prompt or setting that cannot be served.
        """

    def tokens(self, request: TextsRequest | StateRequest) -> Sequence[PromptToken]:
        """Return the first prompt of a request as the model reads it; any thread may call it.

        Raises:
            RequestError: As for `encode`.
        """
