"""A large model as the annotator: soft labels of a table, measured against people's."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taskfit.data import Example
from taskfit.data.examples import mean_words
from taskfit.errors import SettingsError
from taskfit.files import refuse_over_input
from taskfit.labels.annotate_check import cross_fitted, measure_agreement
from taskfit.labels.annotate_data import ToAnnotate, read_texts
from taskfit.labels.annotate_files import (
    AnnotatedFiles,
    Annotation,
    question_of,
    refuse_over_answers,
    write_annotation,
)
from taskfit.lock import only_one_at_a_time
from taskfit.method_settings import RemoteMethodSettings
from taskfit.methods.remote_reader import RemoteReader, RemoteReadings
from taskfit.remote import RemoteLimitError
from taskfit.remote.words import estimate_words
from taskfit.runs.predict import check_target
from taskfit.screen import Screen, each_tenth
from taskfit.settings import RunSettings


def annotate(
    settings: RunSettings,
    target: Path,
    *,
    screen: Screen,
    check: str | None = None,
    calibrate: bool = False,
    only_estimate: bool = False,
    overwrite: bool = False,
) -> Annotation:
    """Let an endpoint label the texts of a table, and write the shares of the labels.

    Every answer is kept on disk as it arrives, so the same call goes on after an interruption, a
    failure or a limit, and pays nothing twice. Texts that people labelled are asked about first.

    Args:
        settings: `data.train` is the table; `method` is remote; section `remote` the endpoint.
        target: File to write: .csv, .tsv, .jsonl or .parquet; other files stand beside it.
        screen: Where progress is shown.
        check: File with people's labels; None: the rows of the table that have one.
        calibrate: Correct the shares by a temperature fitted to people's labels.
        only_estimate: Send nothing and write nothing; return the estimate.
        overwrite: Whether the target may be the table that is read, and labels that people gave to
            rows without an answer may be lost.

    Raises:
        DataError: If a table does not fit the task, or no text has an answer.
        RemoteError: If the endpoint gives no answer; those that it gave are kept.
        SettingsError: If settings do not suit an annotator.
    """
    files = AnnotatedFiles.beside(target)
    check_target(target)
    read = [settings.data.train, check, settings.task.name]
    for path in dataclasses.astuple(files):
        refuse_over_input(Path(path), read, overwrite=overwrite)
    given = read_texts(settings, check)
    for note in given.notes:
        screen.note(note)
    if calibrate and not given.human:
        raise SettingsError(
            "--calibrate fits a temperature to people's labels, and there are none: give some with "
            "--check, or in the table's label column."
        )
    reader = _reader(settings, given)
    # People's first, so that a limit leaves something to say of the others.
    asked = list({example.id: example for example in (*given.human, *given.filled)}.values())
    expected = reader.estimate(asked)
    screen.note(
        f"{len(given.texts):,} texts of {mean_words(given.texts):.0f} words, "
        f"{len(given.human):,} labels by people, {len(given.shown)} shown in the prompt"
    )
    screen.note(f"to send: {estimate_words(expected)}")
    before = Annotation(None, expected, len(given.texts))
    if only_estimate:
        return before
    refuse_over_answers(files, overwrite=overwrite)
    with only_one_at_a_time(target, beside=True):
        stopped = _ask(reader, asked, screen)
        texts = reader.read_known(given.filled)
        before = replace(before, files=files, stopped=stopped)
        annotation = _measured(settings, given, reader, texts, before, calibrate=calibrate)
        write_annotation(settings, given, texts, annotation, check)
    return annotation


def _reader(settings: RunSettings, given: ToAnnotate) -> RemoteReader:
    method = settings.method
    assert isinstance(method, RemoteMethodSettings)
    if given.task.multi_label:
        raise SettingsError(
            "The annotator gives a text one label, but task.multi_label is set: ask about each "
            "label by itself, with a task of two labels."
        )
    return RemoteReader(
        settings.remote, given.task, given.shown, max_new_tokens=method.max_new_tokens
    )


def _ask(reader: RemoteReader, asked: Sequence[Example], screen: Screen) -> str | None:
    """Ask about all texts; return what a limit left undone says."""

    def tell(done: int) -> None:
        if (usage := reader.usage).num_requests:
            money = "" if usage.cost is None else f", {usage.cost:.4g} spent"
            screen.note(f"{done:,} of {len(asked):,} texts answered{money}")

    spent = each_tenth(len(asked), tell)
    with screen.progress("asking the annotator", len(asked)) as advance:

        def count(number: int) -> None:
            advance(number)
            spent(number)

        try:
            reader.read(asked, advance=count)
        except RemoteLimitError as limit:
            return str(limit)
    return None


def _measured(
    settings: RunSettings,
    given: ToAnnotate,
    reader: RemoteReader,
    texts: RemoteReadings,
    before: Annotation,
    *,
    calibrate: bool,
) -> Annotation:
    """Return an annotation with what the answers so far say of texts and of people's labels."""
    names = given.task.label_names
    best = texts.probabilities[texts.has_answer].argmax(axis=1)
    counts = Counter(names[int(place)] for place in best)
    asked = int(texts.was_asked.sum())
    num_blank = len(given.texts) - len(given.filled)
    agreement = calibrated = temperature = None
    human = reader.read_known(given.human)
    if human.was_asked.any():
        known = human.probabilities[human.was_asked]
        kept = [e for e, was in zip(given.human, human.was_asked, strict=True) if was]
        gold = question_of(given.task).gold(kept)
        agreement = measure_agreement(known, gold, labels=names, seed=settings.seed)
        if calibrate:
            fitted, temperature = cross_fitted(known, gold, seed=settings.seed)
            calibrated = measure_agreement(fitted, gold, labels=names, seed=settings.seed)
    return replace(
        before,
        counts=dict(counts.most_common()),
        read_from=dict(Counter(how for how in texts.read_from if how)),
        num_unanswered=asked - int(texts.has_answer.sum()) + num_blank,
        num_not_asked=len(given.texts) - num_blank - asked,
        usage=reader.usage,
        paid=reader.paid([*given.human, *given.filled]),
        agreement=agreement,
        calibrated=calibrated,
        temperature=temperature,
    )
