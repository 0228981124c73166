"""A run of a task with labels, of one question or several: texts in, probabilities out."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from taskfit.data import Example
from taskfit.data.examples import class_counts, mean_words
from taskfit.errors import DataError, SettingsError
from taskfit.method_base import ReadsOptions
from taskfit.methods.method import Method, MethodContext, TrainedMethod
from taskfit.methods.table import METHODS, label_method
from taskfit.methods.targets import target_matrix
from taskfit.models.load import LoadedModel
from taskfit.runs.baselines import MISLEADING
from taskfit.runs.blending import fit_probes, make_blend
from taskfit.runs.calibration import HeldOut, calibrate, hold_out
from taskfit.runs.classifier import Classifier
from taskfit.runs.cross_validation import FOLDER, RUN, cross_validate, needs_cross_validation
from taskfit.runs.kind import Measured, RunKind, Size
from taskfit.runs.measure_run import (
    baselines_of,
    evaluate_sets,
    held_against,
    latency,
    measure_cross_validation,
)
from taskfit.runs.measured import LEVELS
from taskfit.runs.option_order import lists_options, order_sentences, try_orders
from taskfit.runs.predictions import renaming_note
from taskfit.runs.prepare import PreparedData, prepare_data, with_seen
from taskfit.runs.rows import check_every_question
from taskfit.runs.run import (
    Run,
    evaluation_sets,
    longest_texts,
    model_of,
    no_validation_note,
)
from taskfit.runs.seen import Seen, seen_in, tables_of
from taskfit.runs.slices import check_slices
from taskfit.runs.thresholds import (
    RECORD,
    check_thresholds,
    choose_thresholds,
    goal_of,
    threshold_sentence,
)
from taskfit.runs.train_method import train_method
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.tasks.control_tokens import ControlTokens, control_note
from taskfit.tasks.questions import Questionnaire
from taskfit.training.checkpoint import TrainingState
from taskfit.training.distributed import gather, on_main
from taskfit.training.trackers import Trackers

# Bars of classes on the screen, and their measures (characters).
MOST_BARS = 12
NAME_WIDTH = 34
BAR_WIDTH = 40


class LabelRun(RunKind[Classifier]):
    """A run of a task with labels.

    Attributes:
        data: Its examples, without what is kept for calibration.
    """

    data: PreparedData
    _held_out: HeldOut
    _crossed: Mapping[str, Any] | None = None

    def read(self) -> Mapping[str, str]:
        """Read the data; return the hash of each set by name."""
        if self.origin is not None:
            self.origin = with_seen(self.origin)
        self.data = prepare_data(self.settings, several=True, origin=self.origin)
        return self.data.fingerprint

    def seen(self) -> Seen:
        """Return which text stands in which set."""
        before = None if self.origin is None else self.origin.seen
        return seen_in(self.data.sets, tables_of(self.settings), before)

    def tell(self) -> None:
        """Say what the data are, check slices, and keep a part for calibration where asked to."""
        data = self.data
        check_slices(self.settings, data.evaluations or {"validation": data.validation})
        notes = check_learnable(self.settings, data)
        check_thresholds(data.asked, self.settings)
        self._held_out = hold_out(data.validation, self.settings)
        self.data = replace(data, validation=self._held_out.validation, notes=(*data.notes, *notes))
        _tell_about_data(self.data, self.screen)
        if self.trains and not self.data.validation:
            self.screen.note(no_validation_note(self.settings))

    @property
    def trains(self) -> bool:
        """Return whether the method trains in steps."""
        return issubclass(METHODS[self.settings.method.name], TrainedMethod)

    def size(self) -> Size:
        """Return how many texts and labels there are."""
        return size_of(self.data)

    def load(self, model: LoadedModel | None) -> None:
        """Load the model where the method reads one, and make the method."""
        data, name = self.data, self.settings.method.name
        origin, start = self.origin, None
        if origin is not None:
            start = origin.starting_point()
        loaded = model_of(self.settings, model, self.memory, self.screen, origin=origin)
        context = MethodContext(self.settings, data.asked, data.demonstrations, loaded, start=start)
        self.fitted = Classifier(label_method(name)(context))
        if loaded is not None:
            loaded.tree.lean.forget()  # of an earlier run of this model
            if not self.trains:
                # As a loaded run does it, so that it says what was measured here.
                loaded.tree.prepare_scoring()
        for note in self.method.notes():
            self.screen.note(note)
        self._tell_control_tokens()

    def _tell_control_tokens(self) -> None:
        """Say how many texts hold control tokens, and what is made of these."""
        tokenizer, data = self.method.tokenizer, self.data
        if tokenizer is None:
            return
        sets = [data.train, data.validation, data.demonstrations, *data.evaluations.values()]
        texts = [example for found in (*sets, data.unlabeled) for example in found]
        control = ControlTokens(tokenizer.backend_tokenizer)
        words = [
            (f"the label {label.name}", control.found_in(" ".join(label.words)))
            for task in data.asked.tasks.values()
            for label in task.labels
        ]
        allowed = self.settings.task.allow_control_tokens or data.asked.allow_control_tokens
        for found, what in ((control.held_by(texts), "texts"), (words, "labels")):
            if (note := control_note(found, allowed=allowed, what=what)) is not None:
                self.screen.note(note)

    def start(self, *, resume: bool) -> None:
        """Predict the longest texts, and cross-validate a small table."""
        _dry_run(self._run)
        if needs_cross_validation(self.method, self.settings, self.data):
            if self.origin is not None and self.origin.whole_model is not None:
                self.screen.note(
                    "not cross-validated: the weights that training starts from have seen the "
                    "texts. Give a table to measure on with --test NAME=FILE"
                )
                return
            if self.origin is not None and self.origin.weights is not None:
                self.screen.note("cross-validation fits start from the base model")
            self._crossed = cross_validate(
                self.settings, self.data, self.folder, model=self.model, screen=self.screen
            )

    def train(self, trackers: Trackers) -> tuple[TrainingState, int]:
        """Fit the method, train it where it trains in steps, blend and calibrate."""
        method, data = self.method, self.data
        probes = fit_probes(method.context, data.train) if method.learns else ()
        method.prepare(data.train, data.validation)
        found = TrainingState(), 0
        if isinstance(method, TrainedMethod):
            found = train_method(self._run, method, trackers=trackers)
        self._details: dict[str, Any] = {}
        self.fitted.blend = make_blend(method, probes, data.validation)
        if self.fitted.blend is not None:
            self._details["blend"] = self.fitted.blend.record
            self.screen.note(self.fitted.blend.sentence)
        self._details |= calibrate(self.fitted, self._held_out, self.settings, self.screen)
        self._details |= self._choose_thresholds()
        return found

    def _choose_thresholds(self) -> dict[str, Any]:
        """Choose thresholds on texts that were not learned from, after the temperature."""
        if goal_of(self.settings, self.data.asked) is None:
            return {}
        if self._crossed is None:
            texts, source = self._held_out.validation, "validation texts"
            found = self.fitted.probabilities(texts) if texts else np.empty((0, 0))
        else:
            texts, source = self.data.train, "texts that cross-validation predicted"
            found = self.fitted.at_temperature(self._crossed[RUN])
        return choose_thresholds(
            self.fitted, texts, found, self.settings, self.screen, source=source
        )

    def save(self) -> None:
        """Write the classifier."""
        extra = {"method": self.settings.method.name, "name": self.name}
        self.fitted.save(self.folder, weights=self.weights, extra=extra)

    def measure(self, *, baselines: bool) -> Measured:
        """Measure every set, or what cross-validation predicted."""
        run = self._run
        if self._crossed is not None:
            found = measure_cross_validation(run, self._crossed)
        else:
            found = evaluate_sets(run, baselines_of(run) if baselines else {})
        if self.model is not None and (note := self.model.tree.lean.stock_note()) is not None:
            self.screen.note(note)
        beside = held_against(run, found)
        details = {**_method_report(self.method), **self._details, **beside, **_option_order(run)}
        if found.coverage:
            details["coverage"] = found.coverage
        if found.thresholds:
            details[RECORD] = {**details[RECORD], "sets": found.thresholds}
            for name, record in found.thresholds.items():
                self.screen.note(threshold_sentence(name, record))
        asked = self.data.asked
        if isinstance(asked, Questionnaire):
            details |= {"questions": asked.names, "metric": asked.metric, LEVELS: found.levels}
        metrics = {
            f"{name}/{metric}": float(getattr(evaluation, metric))
            for name, evaluation in found.evaluations.items()
            for metric in ("accuracy", "mcc", "macro_f1", "log_loss", "ece")
        }
        return Measured(found.evaluations, metrics, found.seconds, details)

    @property
    def method(self) -> Method:
        """Return the method."""
        return self.fitted.method

    @property
    def model(self) -> LoadedModel | None:
        """Return the language model, or None where the method reads none."""
        return self.method.context.model

    @property
    def model_name(self) -> str:
        """Return the model as the user named it, or the method where there is none."""
        return self.fitted.model_name

    @property
    def task_name(self) -> str:
        """Return name and version of the task."""
        return f"{self.data.asked.name} v{self.data.asked.version}"

    @property
    def num_train(self) -> int:
        """Return the training examples whose labels were seen, beside demonstrations."""
        method = self.method
        seen = method.learns or method.settings.retrieves
        return len(self.data.train) if seen else 0

    @property
    def num_demonstrations(self) -> int:
        """Return how many labelled examples stand in the prompt."""
        return len(self.data.demonstrations)

    @property
    def cached_seconds(self) -> float:
        """Return what method and blend would have taken in addition without cached features."""
        blend = self.fitted.blend
        return self.method.cached_seconds + (blend.cached_seconds if blend is not None else 0.0)

    def latency(self) -> float | None:
        """Return the median seconds to predict one text by itself."""
        return latency(self._run)

    def clean(self) -> None:
        """Remove the fits of cross-validation."""
        on_main(lambda: shutil.rmtree(self.folder / FOLDER, ignore_errors=True))

    @property
    def _run(self) -> Run:
        return Run(self.settings, self.folder, self.data, self.fitted, self.memory, self.screen)


def _option_order(run: Run) -> dict[str, Any]:
    """Return what other orders of the options change on the first evaluation set, and tell it."""
    name, examples = next(iter(evaluation_sets(run.data).items()), ("", []))
    if not (examples and lists_options(run.classifier)):
        return {}
    found = try_orders(run.classifier, examples, screen=run.screen)
    method = run.settings.method
    averaged = method.option_orders if isinstance(method, ReadsOptions) else 1
    for sentence in order_sentences(found.effects, averaged=averaged):
        run.screen.note(sentence)
    questions = {name: effect.to_dict() for name, effect in found.effects.items()}
    return {"option_order": {"set": name, "averaged": averaged, "questions": questions}}


def size_of(data: PreparedData) -> Size:
    """Return how many texts a method trains on, and their labels and words."""
    learned = data.unlabeled or data.train
    num_labels = max(len(task.labels) for task in data.asked.tasks.values())
    return Size(len(learned), num_labels, mean_words(learned))


def _method_report(method: Method) -> dict[str, Any]:
    """Return what the method has to report; of several processes, counts are added up."""
    found = gather(dict(method.report()))
    return found[0] if len(found) == 1 else {name: sum(f[name] for f in found) for name in found[0]}


def check_learnable(settings: RunSettings, data: PreparedData) -> list[str]:
    """Check that a method that learns has something to learn from.

    Returns:
        What people should know about it.

    Raises:
        TaskfitError: If not.
    """
    method = settings.method
    kind = label_method(method.name)
    texts_suffice = issubclass(kind, TrainedMethod) and not kind.needs_labels
    if kind.learns and not data.train and not (texts_suffice and data.unlabeled):
        raise DataError(f"{method.name} needs training examples: give a table, or a built-in task.")
    return check_every_question(data.asked, data.train) if kind.learns else []


def _tell_about_data(data: PreparedData, screen: Screen) -> None:
    sets = ", ".join(f"{name} {len(found):,}" for name, found in data.evaluations.items())
    asked = data.asked
    several = isinstance(asked, Questionnaire)
    what = f"questions {asked.name} ({', '.join(asked.tasks)})" if several else f"task {asked.name}"
    labels = ", ".join(dict.fromkeys(one.label_column for one in asked.tasks.values()))
    screen.note(f"{what}: texts in {', '.join(asked.text)}, labels in {labels}")
    screen.note(
        f"{len(data.train):,} texts to train on, {len(data.validation):,} to validate, "
        f"{len(data.demonstrations)} shown in the prompt; test sets: {sets or 'none'}"
    )
    for note in data.notes:
        screen.note(note)
    for name in asked.tasks:
        known = [example.of(name) for example in (*data.demonstrations, *data.train)]
        known = [example for example in known if example.label is not None]
        for line in class_bars(known, asked.tasks[name].label_names):
            screen.note(line)
        counts = class_counts(known)
        label, most = counts.most_common(1)[0] if counts else ("", 0)
        if most > 0 and most >= MISLEADING * counts.total():
            what = f" that answer {name}" if name else ""
            screen.note(
                f"{most / counts.total():.0%} of the training texts{what} are {label!r}: read MCC "
                "or F1, not accuracy"
            )
    for found in {renaming_note(found, asked.tasks): None for found in data.evaluations.values()}:
        if found is not None:
            screen.note(found)
    overlap = data.overlap
    if overlap is not None and overlap.num_dropped:
        where = ", ".join(f"{name} {count}" for name, count in overlap.dropped_by_set.items())
        screen.note(
            f"removed {overlap.num_dropped} training examples whose text also stands in: {where}"
        )
    if overlap is not None and overlap.num_conflicts:
        screen.note(
            f"{overlap.num_conflicts} training texts stand there with different labels "
            f"(kept; first: {', '.join(overlap.conflict_ids[:2])})"
        )


def class_bars(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Return a line for each class with its share of labelled texts as a bar.

    Of very many classes it is one line, with the most and the least frequent one.
    """
    if not examples:
        return []
    counts = target_matrix(examples, labels).sum(axis=0)
    ordered = sorted(zip(counts.tolist(), labels, strict=True), key=lambda pair: -pair[0])
    if len(ordered) > MOST_BARS:
        (most, first), (least, last) = ordered[0], ordered[-1]
        return [f"{len(ordered)} classes, from {first!r} ({most:.0f}) to {last!r} ({least:.0f})"]
    width = min(NAME_WIDTH, max(len(label) for label in labels))
    shown = {name: name if len(name) <= width else f"{name[: width - 1]}…" for name in labels}
    return [
        f"  {shown[label]:<{width}} {count / len(examples):>4.0%} "
        f"{'#' * round(BAR_WIDTH * count / len(examples))}".rstrip()
        for count, label in ordered
    ]


def _dry_run(run: Run) -> None:
    """Predict the longest few examples, so that what will fail fails now."""
    longest = longest_texts(run.data)
    if not longest:
        raise SettingsError("There is nothing to train on and nothing to evaluate.")
    run.classifier.method.dry_run(longest)
    run.memory.stage("forward")
