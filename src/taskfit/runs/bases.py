"""The models that a run was made from: recorded when it starts, found again and compared later.

`bases.json` holds for the causal language model and for each encoder its name, its place, and what
its files hold (`models/identity.py`). An adapter, a probe or a checkpoint says nothing of value on
another base, so every command that goes on with a run looks here first.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskfit.errors import CheckpointError, TaskfitError, first_line
from taskfit.files import write_json_atomic
from taskfit.models.identity import Identity, identify, model_folder
from taskfit.models.packaged import PACKAGED_ENCODERS, locate_model
from taskfit.settings import RunSettings

BASES_FILE = "bases.json"
# The key of the causal language model; encoders stand under their names.
MODEL = "model"
# Fields of `method` that name what it reads: an encoder, or MODEL.
READING = ("encoder", "features", "retriever")
ALLOW = "--allow-other-base (in Python allow_other_base=True)"


@dataclass(frozen=True, slots=True)
class Base:
    """A model that a run was made from.

    Attributes:
        name: As the user gave it.
        revision: Branch, tag or commit of a hub model, as the user gave it.
        commit: Of a hub model, the commit it was.
        place: Of a local folder, its absolute path.
        beside: The same, as seen from the run's folder.
        identity: What its files held.
    """

    name: str
    revision: str | None
    commit: str | None
    place: str | None
    beside: str | None
    identity: Identity


@dataclass(frozen=True, slots=True)
class Found:
    """A base, found again.

    Attributes:
        name: What to load it by.
        revision: Of a hub model.
        identity: What its files hold now.
    """

    name: str
    revision: str | None
    identity: Identity


def named_bases(
    settings: RunSettings, *, model_name: str | None = None
) -> dict[str, tuple[str, str | None]]:
    """Return name and revision of the models that a run reads, by key.

    Args:
        settings: Of the run.
        model_name: Of a causal language model that the caller has loaded; None: by the settings.
    """
    found: dict[str, tuple[str, str | None]] = {}
    if settings.method.reads_model:
        found[MODEL] = (model_name or settings.model.name, settings.model.revision)
    return found | {name: (name, None) for name in settings.method.encoders}


def current_base(folder: Path, key: str, name: str, revision: str | None) -> Base | None:
    """Return a base as it is now; None where there is none of this name, which loading tells.

    Args:
        folder: The run's folder.
        key: MODEL, or the name of an encoder.
        name: As the user gave it.
        revision: Of a hub model.
    """
    with suppress(TaskfitError, OSError):
        home = model_folder(name, revision, located=None if key == MODEL else _encoder(name))
        is_local, on_hub = Path(name).expanduser().is_dir(), home.parent.name == "snapshots"
        return Base(
            name=name,
            revision=revision,
            commit=home.name if on_hub and not is_local else None,
            place=str(home.resolve()) if is_local else None,
            beside=_seen_from(folder, home) if is_local else None,
            identity=identify(home),
        )
    return None


def check_bases(
    folder: Path,
    settings: RunSettings,
    model_name: str | None = None,
    *,
    allow_other: bool = False,
) -> None:
    """Record the models that a run is made from; those recorded before must be the same.

    Args:
        folder: The run's folder, opened.
        settings: Of the run.
        model_name: See `named_bases`.
        allow_other: Whether other ones are recorded in their place.

    Raises:
        CheckpointError: Saying what is another model now.
    """
    recorded = read_bases(folder)
    bases = dict(recorded)
    for key, named in named_bases(settings, model_name=model_name).items():
        now, before = current_base(folder, key, *named), recorded.get(key)
        if now is None:
            if before is not None and before.place is not None:
                raise CheckpointError(
                    f"{_who(key)} of the run in {folder} is called {named[0]!r}, and there is no "
                    f"model of that name here; when the run was started it was {before.place}. Go "
                    "on from the folder where it was started, or put the model back."
                )
            continue
        if before is None or allow_other:
            bases[key] = now
        elif found := _differences(before, now.identity, settings):
            raise CheckpointError(
                f"{_who(key)} of the run in {folder} changed since the run was started: "
                f"{_place(now)} holds {' and '.join(found)}. Put it back as it was, start a new "
                f"run in another folder, or go on all the same with {ALLOW}."
            )
    if bases != recorded:
        write_json_atomic(folder / BASES_FILE, {key: asdict(base) for key, base in bases.items()})


def changed_bases(folder: Path, settings: RunSettings, known: dict[str, Base | None]) -> list[str]:
    """Say which models of a run in a folder are others now; empty: none, or it is not known.

    Args:
        folder: The run's folder.
        settings: Of the run.
        known: Bases as they are now, by key and name; filled in.
    """
    found = []
    recorded = read_bases(folder)
    for key, (name, revision) in named_bases(settings).items():
        if key not in recorded:
            continue
        if (place := f"{key} {name} {revision}") not in known:
            known[place] = current_base(folder, key, name, revision)
        now = known[place]
        if now is not None and (what := _differences(recorded[key], now.identity, settings)):
            found.append(f"{_place(now)} holds {' and '.join(what)}")
    return found


def find_bases(
    folder: Path, settings: RunSettings, *, own_weights: bool, allow_other: bool = False
) -> dict[str, Found]:
    """Find the models that a finished run predicts with, and check that they are its own.

    A local folder is looked for where it was as seen from the run's folder, where it was, and by
    its name from here; the first that holds the same is taken. Runs of earlier versions recorded
    nothing; for them the result is empty.

    Args:
        folder: The run's folder.
        settings: Of the run.
        own_weights: Whether the run holds all weights of the model that it trained.
        allow_other: Whether another model will do; the first that is found.

    Raises:
        CheckpointError: If one is not there, or is another, saying in what it differs.
    """
    recorded, needed = read_bases(folder), set(named_bases(settings))
    if own_weights:
        trained = {MODEL} if settings.method.reads_model else set(settings.method.read_features)
        needed -= trained - set(settings.method.blended)
    return {
        key: _find(folder, key, base, settings, allow_other=allow_other)
        for key, base in recorded.items()
        if key in needed
    }


def read_bases(folder: Path) -> dict[str, Base]:
    """Return what a run recorded of its models; empty for runs of earlier versions.

    Raises:
        CheckpointError: If it cannot be read.
    """
    path = folder / BASES_FILE
    if not path.is_file():
        return {}
    try:
        plain: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: Base(**{**base, "identity": Identity(**base["identity"])})
            for key, base in plain.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from error


def with_found(settings: RunSettings, found: Mapping[str, Found]) -> RunSettings:
    """Return settings that name the models by where they were found."""
    method = settings.method
    given = {field: str(method.model_dump().get(field)) for field in READING}
    changed: dict[str, Any] = {
        field: found[name].name for field, name in given.items() if name in found and name != MODEL
    }
    if method.blended:
        changed["blend"] = list(blended_places(method.blended, found))
    update: dict[str, Any] = {"method": method.model_copy(update=changed)}
    if (model := found.get(MODEL)) is not None:
        named = {"name": model.name, "revision": model.revision}
        update["model"] = settings.model.model_copy(update=named)
    return settings.model_copy(update=update)


def blended_places(names: tuple[str, ...], found: Mapping[str, Found]) -> tuple[str, ...]:
    """Return where the encoders of a blend were found."""
    return tuple(n if n == MODEL or n not in found else found[n].name for n in names)


def _find(folder: Path, key: str, base: Base, settings: RunSettings, *, allow_other: bool) -> Found:
    if base.place is None:
        candidates = [_fetched(key, base, allow_other=allow_other)]
    else:
        seen = folder.resolve() / (base.beside or base.place)
        homes = [
            Path(os.path.normpath(p)) for p in (seen, base.place, Path(base.name).expanduser())
        ]
        candidates = [
            Found(str(home), None, identify(home))
            for home in dict.fromkeys(home.resolve() for home in homes)
            if (home / "config.json").is_file()
        ]
    if not candidates:
        raise CheckpointError(
            f"{_who(key)} of the run in {folder} is not where it was: {base.place}. Put it back "
            f"there, or where it was beside the run ({base.beside})."
        )
    for candidate in candidates:
        if not _differences(base, candidate.identity, settings):
            return candidate
    if allow_other:
        return candidates[0]
    what = " and ".join(_differences(base, candidates[0].identity, settings))
    raise CheckpointError(
        f"{_who(key)} is not the one that the run in {folder} was made from: {candidates[0].name} "
        f"holds {what}. Put back the one that lay in {base.place or base.name} when the run was "
        f"made, or use this one all the same with {ALLOW}."
    )


def _fetched(key: str, base: Base, *, allow_other: bool) -> Found:
    """Return a base of the hub or a package, at the commit that it was: branches go on.

    Raises:
        CheckpointError: If it cannot be had.
    """
    located = None if key == MODEL else _encoder(base.name)
    revisions = [base.revision or base.commit, *([base.revision] if allow_other else [])]
    for place, revision in enumerate(revisions, start=1):
        try:
            home = model_folder(base.name, revision, located=located)
            return Found(base.name, revision, identify(home))
        except OSError as error:
            if place == len(revisions):
                at = f" at {revision}" if revision else ""
                raise CheckpointError(
                    f"{_who(key)} {base.name}{at} cannot be had: {first_line(error)} Fetch it "
                    "where there is a network."
                ) from error
    raise AssertionError("there is at least one revision")


def _differences(base: Base, now: Identity, settings: RunSettings) -> list[str]:
    # What is made of rows by a template hangs on the model's own, unless the run names another.
    own_template = settings.method.is_tuning and settings.tuning.chat_template is None
    return base.identity.differences(now, chat_template=own_template)


def _encoder(name: str) -> str:
    return locate_model(name, PACKAGED_ENCODERS)


def _seen_from(folder: Path, home: Path) -> str | None:
    with suppress(ValueError):  # another drive
        return os.path.relpath(home.resolve(), folder.resolve())
    return None


def _who(key: str) -> str:
    return "The base model" if key == MODEL else f"The encoder {key}"


def _place(base: Base) -> str:
    return base.place or f"{base.name}{f' at {base.commit}' if base.commit else ''}"
