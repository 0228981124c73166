"""Answers for the prompts of a file, in chunks that survive an interruption."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from taskfit.data.instructions import InstructionRow, Raw, read_instructions
from taskfit.errors import CheckpointError, PromptError
from taskfit.methods.method import Advance
from taskfit.models.load import load_model
from taskfit.runs.classifier import FILE as CLASSIFIER_FILE
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predict import check_target
from taskfit.runs.records import QUESTIONS_FILE, TUNED_FILE
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import Prompt, for_people, hash_rows, prompt_of, reference_of
from taskfit.screen import Screen
from taskfit.settings import ModelSettings, RunSettings, TuningSettings

CHUNK = 64
TOLD = 5


def load_generator(name: str, *, device: str = "auto", template: str | None = None) -> TunedModel:
    """Load the model of a tuning run, or any model by name.

    Args:
        name: Folder of a finished run, hub id, local folder of a model, or packaged model.
        device: See `model.device`.
        template: Chat template instead of the model's own; see `tuning.chat_template`.

    Raises:
        TaskfitError: If there is no such model, or the run is one of another kind.
    """
    folder = Path(name).expanduser()
    tuning = TuningSettings(chat_template=template)
    if (folder / TUNED_FILE).is_file():
        tuned = TunedModel.load(folder, device=device)
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
) -> int:
    """Answer the prompts of a file and write id, prompt, answer, and reference where there is one.

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

    Returns:
        Number of prompts answered.

    Raises:
        TaskfitError: If model, source or target does not allow it.
    """
    check_target(target)
    found = read_instructions(
        source, kind=kind, columns=columns, encoding=encoding, need_answer=False
    )
    rows = found.rows
    screen.note(f"{len(rows):,} prompts, read as {found.format.describe()}")
    for note in found.notes:
        screen.note(note)
    tuned = load_generator(name, device=device, template=template)
    check_room(tuned, rows, decoding)
    folder = Path(name).expanduser()
    made_from = {
        "source": hash_rows(rows),
        "model": describe_run(folder) if (folder / TUNED_FILE).is_file() else name,
        "options": f"{asdict(decoding)}, template {template}, seed {seed}",
    }
    partial = PartialPredictions(target, made_from, num_rows=len(rows), chunk=CHUNK, screen=screen)

    def answer(index: int, chosen: slice, advance: Advance) -> pd.DataFrame:
        # A chunk's draws hang on the seed and its place alone, so that resuming repeats them.
        torch.manual_seed(seed * 1_000_003 + index)
        chunk = rows[chosen]
        prompts = [asked(row) for row in chunk]
        return _table(chunk, tuned.answer(prompts, decoding, advance=advance))

    partial.fill(f"answering {source}", answer)
    partial.join()
    return len(rows)


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


def _table(rows: Sequence[InstructionRow], answers: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "prompt": [for_people(asked(row)) for row in rows],
            "answer": list(answers),
            "reference": ["" if isinstance(row, Raw) else reference_of(row) for row in rows],
        }
    )
