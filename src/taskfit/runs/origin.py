"""The finished run that another one goes on from: its settings, its task, its weights.

What is needed of it is put into the new run's folder before anything else (`start/`; files of
weights as hard links where the disk allows it), so that an interrupted run goes on without the
finished one. The finished one is only read.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from taskfit.data import Example
from taskfit.errors import CheckpointError, SettingsError
from taskfit.files import folder_atomic, write_json_atomic
from taskfit.method_settings import TUNING
from taskfit.methods.method import MethodState, StartingPoint
from taskfit.overrides import parse_overrides
from taskfit.runs.bases import find_bases, with_found
from taskfit.runs.classifier import ARRAYS, FILE
from taskfit.runs.file_names import DATA_FILE, RESULT_FILE, SETTINGS_FILE, START, TEXTS_FILE
from taskfit.runs.records import QUESTIONS_FILE, TUNED_FILE, RunResult
from taskfit.runs.saved import ADAPTER, MODEL, saved_run
from taskfit.runs.seen import Seen, read_seen
from taskfit.settings import RunSettings, SearchSettings
from taskfit.settings_base import merge_settings
from taskfit.settings_file import load_run_settings, load_settings
from taskfit.start_settings import StartSettings
from taskfit.tasks import Task, task_from_dict
from taskfit.tasks.question_files import is_questionnaire

RECORD = "origin.json"
# Settings of data that name a table.
TABLES = ("train", "validation", "unlabeled")
FILES = (SETTINGS_FILE, DATA_FILE, FILE, QUESTIONS_FILE, TUNED_FILE, ARRAYS, TEXTS_FILE)
FOLDERS = (ADAPTER, MODEL)
# What decides whether weights fit, beside the method: of all that are trained, of those of a causal
# model, of adapters on one, and of adapters on one in 4 bits.
FIXED = ("task.multi_label", "adapter.weights", "method.prompt", "method.encoder")
FIXED_MODEL = ("model.name", "model.revision")
FIXED_ADAPTER = (
    *("adapter.layers", "adapter.targets", "adapter.lora_rank", "adapter.lora_alpha"),
    *("adapter.rank_stabilized", "adapter.dora"),
)
FIXED_QLORA = ("adapter.double_quantization",)


@dataclass(frozen=True)
class Origin:
    """A finished run, as a run that goes on from it sees it.

    Attributes:
        folder: What was taken of it, in the new run's folder.
        settings: Its settings.
        record: Where it was, the hash of its record, and what it went on from itself.
        fingerprint: Hash of each of its sets, by name.
        seen: Which of its texts stood in which set; None: it does not tell.
    """

    folder: Path
    settings: RunSettings
    record: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    seen: Seen | None

    @property
    def run(self) -> str:
        """Return where the run was, as short as it can be said here."""
        return shown_path(str(self.record["run"]))

    @property
    def weights(self) -> Path | None:
        """Return the folder of its adapter or whole model; None: it trained none."""
        return next((self.folder / name for name in FOLDERS if self._has(name)), None)

    @property
    def whole_model(self) -> Path | None:
        """Return the folder of the causal language model that it trained in full; None: none."""
        return self.weights if self._has(MODEL) and self.settings.method.reads_model else None

    @cached_property
    def task(self) -> Task | None:
        """Return its task of one question; None: it has several, or none."""
        return read_task(self.folder)

    @property
    def demonstrations(self) -> list[Example]:
        """Return the labelled examples in its prompt."""
        return [Example(**entry) for entry in self._saved.get("demonstrations", ())]

    @property
    def chat_template(self) -> str | None:
        """Return the chat template of a tuned model."""
        found: str | None = self._saved.get("chat_template")
        return found

    @property
    def sentence(self) -> str:
        """Return what is taken over of it, for people."""
        method = self.settings.method.name
        if self.weights is None:
            return f"goes on from {self.run} with its task and settings; {method} is fitted anew"
        what = "adapter" if self.weights.name == ADAPTER else "weights"
        with_head = " and head" if method == "head" else ""
        return f"goes on from {self.run}: training starts from its {what}{with_head}"

    def starting_point(self) -> StartingPoint | None:
        """Return what a method goes on from; None: it is fitted anew."""
        if self.weights is None:
            return None
        arrays = load_file(self.folder / ARRAYS) if self._has(ARRAYS) else {}
        labels = () if self.task is None else tuple(self.task.label_names)
        return StartingPoint(
            self.weights, labels, MethodState(self._saved.get("state", {}), arrays)
        )

    def remove(self) -> None:
        """Remove what was taken of it: the new run has weights of its own now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def _saved(self) -> dict[str, Any]:
        """Return what the run wrote of what it fitted."""
        file = next(name for name in (TUNED_FILE, QUESTIONS_FILE, FILE) if self._has(name))
        with saved_run(self.folder, file) as found:
            return found

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()


def continued_settings(
    run: Path, flags: Mapping[str, Any], overrides: Sequence[str] = (), *, tests: bool = True
) -> RunSettings:
    """Return the settings of a finished run under those given now, for a run that goes on from it.

    Not taken are its search, what it drew of its table, and the name of its task where a table is
    given: the task comes from the run itself.

    Args:
        run: The folder of the finished run.
        flags: Nested settings given as flags.
        overrides: `section.key=value` texts.
        tests: Whether it is measured on the run's evaluation sets.

    Raises:
        CheckpointError: If the folder holds no finished run, or its base is another one now.
        SettingsError: Listing everything that is wrong with the settings, or if a table of the run
            that is read again is not there any more.
    """
    if not run.is_dir():
        what = "is a file" if run.exists() else "is not there"
        raise CheckpointError(
            f"{run} {what}: give the folder of a finished run (`taskfit runs` lists them)."
        )
    RunResult.load(run)
    before = _settings_of(run)
    given: dict[str, Any] = {}
    merge_settings(given, flags)
    merge_settings(given, parse_overrides(overrides))
    data: dict[str, Any] = {} if tests else {"tests": {}}
    task = before.task
    if given.get("data", {}).get("train") is not None:
        data |= {"num_train": None, "shots_per_class": None}
        if not is_questionnaire(task.name):
            task = task.model_copy(update={"name": None})
    tuning = before.tuning.model_copy(update={"chat_template": None})  # its own is in the run
    base = before.model_copy(
        update={
            "data": before.data.model_copy(update=data),
            "task": task,
            "tuning": tuning if before.method.is_tuning else before.tuning,
            "search": SearchSettings(),
            "start": StartSettings(run=str(run.resolve())),
        }
    )
    _check_tables(base, given.get("data", {}), run)
    return load_settings(base, flags=flags, overrides=overrides, lenient_file=True)


def _settings_of(run: Path) -> RunSettings:
    """Return the settings of a finished run, which name its models by where they are now.

    Raises:
        CheckpointError: If one is not there, or is another one than the weights were trained on.
    """
    settings = load_run_settings(run / SETTINGS_FILE)
    return with_found(settings, find_bases(run, settings, own_weights=(run / MODEL).is_dir()))


def _check_tables(base: RunSettings, given: Mapping[str, Any], run: Path) -> None:
    """Raise `SettingsError` naming the tables of a run that are to be read again and are gone."""
    data = base.data
    read = {
        **{f"data.{key}": getattr(data, key) for key in TABLES if key not in given},
        **{
            f"data.tests.{name}": source
            for name, source in data.tests.items()
            if name not in given.get("tests", {})
        },
    }
    gone = [
        f"{source} ({key})"
        for key, source in read.items()
        if source is not None and Path(source).suffix and not Path(source).expanduser().exists()
    ]
    if gone:
        raise SettingsError(
            f"{run} read tables that are not there any more: {', '.join(gone)}. Put them back, "
            "start where they are, or give others: the table behind `taskfit fit`, test sets with "
            "--test NAME=FILE, the rest with --set."
        )


def read_task(run: Path) -> Task | None:
    """Return the task of a finished run of one question; None: it has several, or none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    if not (run / FILE).is_file():
        return None
    with saved_run(run, FILE) as saved:
        return task_from_dict(saved["task"])


def take_origin(settings: RunSettings, folder: Path, *, resume: bool) -> Origin | None:
    """Put what is needed of the run that a run goes on from into its folder, unless it is there.

    Args:
        settings: Resolved settings of the new run.
        folder: Its folder, opened.
        resume: Whether it goes on after an interruption.

    Raises:
        CheckpointError: If there is no such finished run.
        SettingsError: If what it learned cannot be used under these settings.
    """
    if settings.start.run is None:
        return None
    source = Path(settings.start.run)

    def take() -> Path:
        target = folder.resolve() / START
        if not (resume and target.is_dir()):
            _take(settings, source, target)
        return target

    from taskfit.training.distributed import on_main  # loads PyTorch

    # The folder of the main process is the run's; all others read what lies there.
    return _read(on_main(take))


def shown_path(run: str, place: Path | None = None) -> str:
    """Return the folder of a run relative to another folder (None: this one) if it lies in it."""
    base = (place or Path.cwd()).resolve()
    path = Path(run)
    return str(path.relative_to(base)) if path.is_relative_to(base) else run


def _take(settings: RunSettings, source: Path, target: Path) -> None:
    result = RunResult.load(source)
    has_weights = any((source / name).is_dir() for name in FOLDERS)
    if result.weights != "none" and not has_weights:
        raise CheckpointError(
            f"{source} holds a finished run without its weights: neither {ADAPTER}/ nor {MODEL}/ "
            "is in it. Copy the whole folder, or fit anew without --from."
        )
    before = _settings_of(source)
    _check_usable(settings, before, source, has_weights=has_weights)
    record = {
        "run": str(source),
        "record": hashlib.sha256((source / RESULT_FILE).read_bytes()).hexdigest()[:16],
        "created": result.created,
        **({START: result.details[START]} if START in result.details else {}),
    }
    with folder_atomic(target) as scratch:
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, scratch / name)
        for name in FOLDERS:
            if (source / name).is_dir():
                shutil.copytree(source / name, scratch / name, copy_function=_link)
        write_json_atomic(scratch / RECORD, record)


def _link(source: str, target: str) -> None:
    """Link a file, which no run ever changes in place, or copy it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read(folder: Path) -> Origin:
    with saved_run(folder, RECORD) as record, saved_run(folder, DATA_FILE) as fingerprint:
        settings = load_run_settings(folder / SETTINGS_FILE)
        return Origin(folder, settings, record, fingerprint, read_seen(folder))


def _check_usable(
    settings: RunSettings, before: RunSettings, run: Path, *, has_weights: bool
) -> None:
    """Raise `SettingsError` where what a run learned does not fit what is asked for now."""
    now, was = settings.method.name, before.method.name
    fixed: list[str] = []
    if has_weights:
        fixed += [*FIXED, *(FIXED_MODEL if settings.method.reads_model else ())]
        fixed += FIXED_ADAPTER if before.adapter.weights != "full" else ()
        fixed += FIXED_QLORA if before.adapter.weights == "qlora" else ()
    if now != was and not {now, was} <= set(TUNING):
        fixed = ["method.name"]  # all else follows from it
    values = [(key, _value(settings, key), _value(before, key)) for key in fixed]
    problems = [f"{key} is {new}, and was {old}" for key, new, old in values if new != old]
    task, texts = read_task(run), settings.data.text
    if task is not None and texts and set(texts) != set(task.text):
        problems.append(
            f"data.text is {', '.join(texts)}, and was {', '.join(task.text)} (rename the columns "
            "of the table)"
        )
    if problems:
        raise SettingsError(
            f"What {run} learned cannot be used with these settings: {'; '.join(problems)}. Leave "
            f"{'it' if len(problems) == 1 else 'them'} out, or fit anew without --from."
        )


def _value(settings: RunSettings, key: str) -> Any:  # noqa: ANN401 - of any setting
    section, _, name = key.partition(".")
    value = settings.model_dump()[section].get(name)
    is_folder = key == "model.name" and Path(value).expanduser().is_dir()
    return str(Path(value).expanduser().resolve()) if is_folder else value
