"""The facts behind advice: data classes of numbers and names, as `advice.json` holds them."""

from dataclasses import dataclass

from taskfit.stats.abstention import AbstentionThreshold
from taskfit.stats.back_test import BackTest
from taskfit.stats.comparison import Comparison, Difference
from taskfit.stats.learning_curve import Gain, LearningCurve

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFacts:
    """A method at one number of labels; costs as in `Candidate.costs`, None: unknown.

    Attributes:
        method, kind: Name of its variant, and the method, whatever the user calls it.
        num_labels: Labelled examples; 0 if it sees none.
        over: Cost -> how many times its limit it is; None where the cost is unknown.
        score, interval: On the texts that all compared methods saw; None where limits exclude it.
        gain, gain_interval: Where they do, what it scores more than the chosen one; None: unknown.
    """

    method: str
    kind: str
    model: str
    language_model: str | None
    num_labels: int
    draws: list[int]
    train_seconds: float
    memory_bytes: float | None
    latency_seconds: float | None
    over: dict[str, float | None]
    score: float | None = None
    interval: Interval | None = None
    gain: float | None = None
    gain_interval: Interval | None = None

    def cost(self, name: str) -> float:
        """Return a cost that is known."""
        return float(getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceFacts:
    """What was compared in domain, from cheap to expensive, and what was chosen; see `Choice`.

    Attributes:
        recommended: The chosen one, whether it keeps the limits or not.
        best, equals: The highest score, and the names of those not significantly different from it.
        saves: Cost by which the chosen one is cheaper than the best, or None.
        most_common_label_share: Of the texts; None where a text may have several labels.
        against_best, against_recommended: The comparison, with differences to either.
    """

    recommended: CandidateFacts
    best: CandidateFacts
    equals: list[str]
    saves: str | None
    draws: list[int]
    num_examples: int
    candidates: list[CandidateFacts]
    most_common_label_share: float | None
    against_best: Comparison
    against_recommended: Comparison


@dataclass(frozen=True, slots=True)
class Loss:
    """What a method scores less out of domain, with the interval of independent texts."""

    loss: float
    interval: Interval

    @property
    def absolute_interval(self) -> Interval:
        """Return the interval of what is lost, or of what is gained where that is more."""
        low, high = self.interval
        return (low, high) if self.loss >= 0 else (-high, -low)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFacts:
    """Scores on the examples of all other sets together.

    Attributes:
        losses: By method; empty where other draws were compared in domain.
        by_set: Set -> method -> score.
        rank_correlation: Kendall's tau-b of the methods' order in and out of domain; None with
            fewer than three methods or without any order.
    """

    sets: list[str]
    num_examples: int
    comparison: Comparison
    losses: dict[str, Loss]
    by_set: dict[str, dict[str, float]]
    rank_correlation: float | None

    @property
    def lead(self) -> Difference | None:
        """Return what the best out of domain is ahead of the chosen one; None if it is the best."""
        found = self.comparison.differences
        return next((d for d in found if d.method == self.comparison.best), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodLabels:
    """What two and four times the labels it has now would bring to a method."""

    now: int
    curve: LearningCurve
    gains: list[Gain]
    back_tests: list[BackTest]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What more labels would bring, by method, and how many forecasts were right."""

    by_method: dict[str, MethodLabels]
    num_back_tests: int
    num_covered: int

    @property
    def verdicts(self) -> dict[str, list[str]]:
        """Return the verdict at the most labels -> methods."""
        found: dict[str, list[str]] = {}
        for name, labels in self.by_method.items():
            found.setdefault(labels.gains[-1].verdict, []).append(name)
        return found


@dataclass(frozen=True, slots=True)
class Answered:
    """What is answered from a threshold on, and how much of it is right."""

    coverage: float
    num_answered: int
    precision: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstentionFacts:
    """The threshold that keeps a precision in domain, and what it keeps elsewhere.

    Attributes:
        wanted_precision: The highest that is tried.
        num_candidates: Among which the method was chosen on the same texts.
        promised, failed: The highest that can be promised and the first that cannot; None: none.
        elsewhere: What the threshold gives out of domain; None without another set.
    """

    wanted_precision: float
    num_candidates: int
    draw: int
    num_examples: int
    promised: AbstentionThreshold | None
    failed: AbstentionThreshold | None
    elsewhere: Answered | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFacts:
    """Whether confidence fits how often the answers given are right.

    Attributes:
        overconfidence, interval: Confidence less accuracy, with its 95 % interval.
        ece_by_chance: 95th percentile of the expected calibration error by chance alone.
        log_loss_of_frequencies: Log loss of always giving the labels' shares.
    """

    num_examples: int
    accuracy: float
    mean_confidence: float
    overconfidence: float
    interval: Interval
    ece: float
    ece_by_chance: float
    log_loss: float
    log_loss_of_frequencies: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many runs waited for other programs, of those whose processor time is known."""

    num_runs: int
    num_waiting: int
    most: float | None


@dataclass(frozen=True, slots=True)
class AlwaysWrong:
    """The examples that every method but the majority class has wrong in every draw."""

    num_methods: int
    num_examples: int
    ids: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownFacts:
    """What the evidence leaves open.

    Attributes:
        num_draws, most_draws: Draws compared, and the most that a method has.
        resolution: Median half width of the intervals of differences to the chosen method.
        not_at_largest: Method -> most labels it had, where that is less than `largest_size`.
        without_shared_draw: Methods that could not be compared.
        always_wrong: None with fewer than three methods.
        num_unanswered, num_evaluated: Texts of the chosen method's first draw in domain.
    """

    num_draws: int
    most_draws: int
    num_examples: int
    resolution: float | None
    num_compared: int
    chosen_scored_highest: bool
    failures: dict[str, str]
    largest_size: int
    not_at_largest: dict[str, int]
    without_shared_draw: list[str]
    language_models: list[str]
    waiting: Waiting
    always_wrong: AlwaysWrong | None
    one_domain: bool
    num_unanswered: int
    num_evaluated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceFacts:
    """Everything behind the advice of a comparison; None: does not apply.

    Attributes:
        recommended, nearest_miss: The chosen method; one of both, the second if none keeps the
            limits.
        over: See `CandidateFacts`, of either.
        limits: Cost -> limit.
        excluded: What the limits exclude, each at its most labels, the highest gain first.
        kinds_run: Methods that were run, whatever the user calls them.
        calibration: `in_domain` and `elsewhere`.
    """

    metric: str
    multi_label: bool
    task: str
    in_domain: str
    recommended: CandidateFacts | None
    nearest_miss: CandidateFacts | None
    over: dict[str, float | None]
    limits: dict[str, float]
    excluded: list[CandidateFacts]
    kinds_run: list[str]
    choice: ChoiceFacts
    out_of_domain: DomainFacts | None
    labels: LabelFacts
    abstention: AbstentionFacts | None
    calibration: dict[str, CalibrationFacts | None] | None
    unknown: UnknownFacts
