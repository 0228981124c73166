"""Answers for the prompts of a file, in chunks that survive an interruption."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from taskfit.data.instructions import InstructionRow, Raw
from taskfit.data.prompt_rows import PromptRow, read_prompts
from taskfit.errors import CheckpointError, PromptError
from taskfit.files import refuse_over_input
from taskfit.lock import only_one_at_a_time
from taskfit.methods.method import Advance
from taskfit.models.identity import describe_model
from taskfit.models.load import load_model
from taskfit.runs.classifier import FILE as CLASSIFIER_FILE
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predict import check_target
from taskfit.runs.predictions import ERROR, ID, names_beside
from taskfit.runs.records import QUESTIONS_FILE, TUNED_FILE
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import Prompt, for_people, hash_rows, prompt_of, reference_of
from taskfit.screen import Screen
from taskfit.settings import ModelSettings, RunSettings, TuningSettings

CHUNK = 64
TOLD = 5
OWN = frozenset({ID, "prompt", "answer", "reference", ERROR})


class GeneratedFile(NamedTuple):
    """What `generate_file` gives back.

    Attributes:
        num_answers: Prompts answered.
        num_errors: Rows without a prompt.
    """

    num_answers: int
    num_errors: int


def load_generator(
    name: str,
    *,
    device: str = "auto",
    template: str | None = None,
    allow_other_base: bool = False,
) -> TunedModel:
    """Load the model of a tuning run, or any model by name.

    Args:
        name: Folder of a finished run, hub id, local folder of a model, or packaged model.
        device: See `model.device`.
        template: Chat template instead of the model's own; see `tuning.chat_template`.
        allow_other_base: Whether a base will do that is not the one of the run.

    Raises:
        TaskfitError: If there is no such model, or the run is one of another kind.
    """
    folder = Path(name).expanduser()
    tuning = TuningSettings(chat_template=template)
    if (folder / TUNED_FILE).is_file():
        tuned = TunedModel.load(folder, device=device, allow_other_base=allow_other_base)
        if template is None:
            return tuned
        return TunedModel(tuned.settings.model_copy(update={"tuning": tuning}), tuned.model)
    if any((folder / file).is_file() for file in (CLASSIFIER_FILE, QUESTIONS_FILE)):
        raise CheckpointError(
            f"{folder} is a classifier, which answers with labels: use `taskfit predict {folder}`."
        )
    if (folder / "settings.yaml").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The run in {folder} is not finished: continue it with `taskfit fit --resume "
            f"{folder}`."
        )
    settings = RunSettings(model=ModelSettings(name=name, device=device), tuning=tuning)
    return TunedModel(settings, load_model(settings.model))


def generate_file(
    name: str,
    source: str,
    target: Path,
    *,
    decoding: Decoding,
    screen: Screen,
    kind: str | None = None,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    device: str = "auto",
    template: str | None = None,
    seed: int = 0,
    allow_other_base: bool = False,
    only_predictions: bool = False,
    overwrite: bool = False,
) -> GeneratedFile:
    """Answer the prompts of a file and write id, prompt, answer, and reference where there is one.

    As many rows come out as the file has, in its order and with its other columns; one that cannot
    be asked says why in a column `error`.

    Finished chunks are kept beside the target until it is whole; the same call goes on from them.

    Args:
        name: A tuning run or a model; see `load_generator`.
        source: File or hub id of instruction data; answers in it are not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        decoding: How to generate.
        screen: Where progress is shown.
        kind: What the rows are; None: recognised.
        columns: Field -> column, where columns have other names.
        encoding: Of the source.
        device: See `model.device`.
        template: Chat template instead of the model's own.
        seed: Of sampling.
        allow_other_base: Whether a base will do that is not the one of the run.
        only_predictions: Whether other columns of the source are left out.
        overwrite: Whether the source may be the target.

    Raises:
        TaskfitError: If model, source or target does not allow it.
    """
    check_target(target)
    refuse_over_input(target, [source], overwrite=overwrite)
    with only_one_at_a_time(target, beside=True):
        form, rows, unread = read_prompts(source, kind=kind, columns=columns, encoding=encoding)
        if only_predictions:
            rows = [replace(row, others={}) for row in rows]
        screen.note(f"{len(rows):,} prompts, read as {form.describe()}")
        for note in unread:
            screen.note(note)
        tuned = load_generator(
            name, device=device, template=template, allow_other_base=allow_other_base
        )
        for note in tuned.model.notes:
            screen.note(note)
        check_room(tuned, _known(rows), decoding)
        folder = Path(name).expanduser()
        made_from = {
            "source": _hash(rows),
            "model": describe_run(folder) if (folder / TUNED_FILE).is_file() else name,
            "base": describe_model(tuned.model.name, tuned.model.revision),
            "options": f"{asdict(decoding)}, template {template}, seed {seed}, "
            f"only predictions {only_predictions}",
        }
        partial = PartialPredictions(
            target, made_from, num_rows=len(rows), chunk=CHUNK, screen=screen
        )
        renamed = names_beside([n for n in rows[0].others if n != ID], OWN)
        for old, new in renamed.items():
            screen.note(f"the column {old} is called {new} here, as answers have one of that name")

        def answer(index: int, chosen: slice, advance: Advance) -> pd.DataFrame:
            # A chunk's draws hang on the seed and its place alone, so that resuming repeats them.
            torch.manual_seed(seed * 1_000_003 + index)
            chunk = rows[chosen]
            prompts = [asked(row) for row in _known(chunk)]
            answers = tuned.answer(prompts, decoding, advance=advance) if prompts else []
            advance(len(chunk) - len(prompts))
            return _table(chunk, answers, renamed, only_answers=only_predictions)

        partial.fill(f"answering {source}", answer)
        partial.join()
    num_answers = len(_known(rows))
    return GeneratedFile(num_answers, len(rows) - num_answers)


def _known(rows: Sequence[PromptRow]) -> list[InstructionRow]:
    return [found.row for found in rows if found.row is not None]


def _hash(rows: Sequence[PromptRow]) -> str:
    """Return a hash of all that the answers' file is made of."""
    known = iter(hash_rows([row]) for row in _known(rows))
    digest = hashlib.sha256()
    for row in rows:
        what = row.error if row.row is None else next(known)
        digest.update(json.dumps([row.id, what, dict(row.others)]).encode())
    return digest.hexdigest()[:16]


def asked(row: InstructionRow) -> Prompt:
    """Return what the model is asked: the turns before the last answer, or the whole text."""
    return row.text if isinstance(row, Raw) else prompt_of(row)


def check_room(tuned: TunedModel, rows: Sequence[InstructionRow], decoding: Decoding) -> None:
    """Check all prompts before the first is answered.

    Raises:
        PromptError: If one cannot be rendered, or leaves no room for an answer.
    """
    rooms = [(row.id, tuned.room_after(asked(row))) for row in rows]
    crowded = [(name, room) for name, room in rooms if room < decoding.max_new_tokens]
    if crowded:
        longest = tuned.model.tree.max_length
        told = ", ".join(f"{name} ({longest - room:,} tokens)" for name, room in crowded[:TOLD])
        raise PromptError(
            f"{len(crowded):,} of {len(rows):,} prompts leave no room for an answer of "
            f"{decoding.max_new_tokens} tokens in the {longest:,} of {tuned.model.name}: {told}"
            f"{', ...' if len(crowded) > TOLD else ''}. Shorten them, leave them out, or ask for "
            "fewer with --max-new-tokens."
        )


def _table(
    rows: Sequence[PromptRow],
    answers: Sequence[str],
    renamed: Mapping[str, str],
    *,
    only_answers: bool,
) -> pd.DataFrame:
    given = iter(answers)
    known = [row.row for row in rows]
    columns: dict[str, list[str | None]] = {
        ID: [row.others.get(ID, row.id) for row in rows],
        "prompt": ["" if row is None else for_people(asked(row)) for row in known],
    }
    for name in rows[0].others:
        if name != ID:
            columns[renamed.get(name, name)] = [row.others[name] for row in rows]
    columns["answer"] = [None if row is None else next(given) for row in known]
    columns["reference"] = [
        "" if row is None or isinstance(row, Raw) else reference_of(row) for row in known
    ]
    if not only_answers:
        columns[ERROR] = [row.error or None for row in rows]
    return pd.DataFrame(columns)
