"""Audit the labels of a table: which are probably wrong, and what else stands in the way.

The folder of an audit holds `audit.html` to read, `audit.csv` to work through, `audit.json` with
counts, `probabilities.parquet` of fits that had not seen the text, and `settings.yaml`.

Legend: N examples, L labels, D width of the encoder.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.curate.settings import NearStep
from taskfit.data import Example, read_table
from taskfit.errors import ModelError, PromptError, SettingsError
from taskfit.files import file_atomic, write_json_atomic
from taskfit.labels import audit_looks as looks
from taskfit.labels.audit_findings import DECISION, KINDS, Finding, findings_table
from taskfit.labels.audit_folds import FOLDER, Fits, out_of_fold
from taskfit.labels.audit_page import CSV, write_audit_page
from taskfit.labels.audit_table import AuditedTable, read_audited
from taskfit.lock import only_one_at_a_time
from taskfit.methods.features import feature_reader
from taskfit.methods.method import MethodContext
from taskfit.models.load import LoadedModel
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.inspection import look_at_model
from taskfit.screen import Screen, SilentScreen
from taskfit.settings import RunSettings

FloatArray = NDArray[np.float64]
JSON, PROBABILITIES = "audit.json", "probabilities.parquet"
# Near copies are told as `taskfit curate` tells them.
NEAR = NearStep(step="near")
# Pairs of given and true label that are shown.
MOST_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        findings: A row each, as in `audit.csv`.
        counts: Findings by kind, those without any too.
        num_rows: Rows with a text and a label.
        labels: Names of the labels, in the order of `probabilities`.
        probabilities: By fits that had not seen the text, (N, L).
        joint: Estimated rows of each given (row) and true label, (L, L); empty where a text may
            have several labels.
        notes: What people should know about it.
    """

    findings: pd.DataFrame
    counts: dict[str, int]
    num_rows: int
    labels: tuple[str, ...]
    probabilities: FloatArray
    joint: list[list[int]]
    notes: list[str]

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """Return pairs of given and true label with the estimated rows, the most frequent first."""
        pairs = [
            (self.labels[given], self.labels[true], count)
            for given, row in enumerate(self.joint)
            for true, count in enumerate(row)
            if given != true and count
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:MOST_PAIRS]


def audit(
    settings: RunSettings,
    folder: Path,
    *,
    screen: Screen | None = None,
    model: LoadedModel | None = None,
    overwrite: bool = False,
) -> Audit:
    """Audit the labels that settings name, and leave a folder with what was found.

    Args:
        settings: Table, columns and task as for a fit, and the method whose cross-validated
            probabilities judge the labels (see `audit_method.py`).
        folder: Where to write.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already.
        overwrite: Whether decisions that stand in the folder may be lost.

    Raises:
        TaskfitError: If settings, data or model do not allow it, or decisions would be lost.
    """
    screen = screen or SilentScreen()
    refuse_over_run(folder)
    refuse_over_decisions(folder, overwrite=overwrite)
    with only_one_at_a_time(folder):
        settings = settings.resolved()
        table = read_audited(settings)
        task, examples = table.task, table.examples
        for note in table.notes:
            screen.note(note)
        vectors = _vectors(settings, table, screen)
        groups = looks.groups_of_copies(examples, vectors.get(""), NEAR.threshold)
        fits = Fits(settings, folder, screen, model)
        probabilities = out_of_fold(fits, table, groups.tolist())
        errors, joint = looks.label_errors(examples, task, probabilities)
        found = [
            *errors,
            *looks.conflicting_copies(examples, groups, task, probabilities),
            *looks.in_evaluations(examples, table.evaluations, vectors, NEAR.threshold),
            *table.unjudged,
            *looks.spoilt_texts(examples),
            *looks.similar_labels(examples),
            *looks.small_classes(examples, task),
            *_token_findings(settings, table, screen),
        ]
        counts = Counter(one.kind for one in found)
        result = Audit(
            findings=findings_table(found, table.marks),
            counts={kind: counts[kind] for kind in KINDS},
            num_rows=len(examples),
            labels=tuple(task.label_names),
            probabilities=probabilities,
            joint=joint,
            notes=table.notes,
        )
        _write(result, table, settings, folder)
    return result


def refuse_over_run(folder: Path) -> None:
    """Check that no run loses its settings to those of an audit.

    Raises:
        SettingsError: If the folder is a run's.
    """
    is_audit = (folder / FOLDER).is_dir() or (folder / JSON).is_file()
    if (folder / SETTINGS_FILE).is_file() and not is_audit:
        raise SettingsError(
            f"{folder} is the folder of a run, whose settings an audit would write over. Give "
            "another with --out."
        )


def refuse_over_decisions(folder: Path, *, overwrite: bool) -> None:
    """Check that no decision of a user is written over.

    Raises:
        SettingsError: If there are any, and they are not given up.
    """
    path = folder / CSV
    if overwrite or not path.is_file() or path.read_bytes().count(b"\n") < 2:
        return  # a header alone, of an audit that found nothing, is no table to read
    before = read_table(str(path))
    decided = int((before[DECISION].str.strip() != "").sum()) if DECISION in before else 0
    if decided:
        raise SettingsError(
            f"{path} holds {decided:,} decisions, which a new audit would write over. Apply them "
            "first (--apply), give another folder with --out, or --overwrite to lose them."
        )


def _vectors(
    settings: RunSettings, table: AuditedTable, screen: Screen
) -> dict[str, NDArray[np.float32]]:
    """Return embeddings of the training texts under "", and of each evaluation set, (N, D)."""
    if not looks.has_neighbours():
        table.notes.append(
            "near copies were not looked for, only texts that are the same: that needs "
            "pip install 'taskfit[curate]'"
        )
        screen.note(table.notes[-1])
        return {}
    reader = feature_reader(MethodContext(settings, table.task, (), None), NEAR.encoder)
    sets = {"": table.examples, **table.evaluations}
    found = {}
    with screen.progress("embedding", sum(map(len, sets.values()))) as advance:
        for name, examples in sets.items():
            found[name] = reader.features(examples, advance=advance)
    return found


def _token_findings(
    settings: RunSettings, table: AuditedTable, screen: Screen
) -> Sequence[Finding]:
    """Return what the model's tokenizer tells; nothing, and a note, where it cannot be had."""
    try:
        tokenizer, limit, _ = look_at_model(settings.model)
        return looks.token_findings(table.examples, table.task, tokenizer, limit)
    except (ModelError, PromptError) as error:
        table.notes.append(f"control tokens, lengths and label words were not looked at: {error}")
        screen.note(table.notes[-1])
        return []


def _write(result: Audit, table: AuditedTable, settings: RunSettings, folder: Path) -> None:
    with file_atomic(folder / PROBABILITIES) as scratch:
        _probabilities(result, table.examples).to_parquet(scratch, index=False)
    columns = table.columns
    described: dict[str, Any] = {
        "table": settings.data.train or settings.task.name,
        "rows": result.num_rows,
        "method": settings.method.name,
        "labels": list(result.labels),
        "counts": result.counts,
        "joint": result.joint,
        "columns": None
        if columns is None
        else {
            "text": list(columns.text),
            "label": columns.label,
            "separator": columns.separator,
            "values": dict(columns.values),
        },
        "notes": result.notes,
    }
    write_json_atomic(folder / JSON, described)
    write_audit_page(folder, result.findings, described, result.confused)
    # Last, since it is what a second audit asks about. With a mark, by which Excel knows UTF-8.
    with file_atomic(folder / CSV) as scratch:
        result.findings.to_csv(scratch, index=False, encoding="utf-8-sig")


def _probabilities(result: Audit, examples: Sequence[Example]) -> pd.DataFrame:
    found = {"id": [e.id for e in examples], "label": [e.label for e in examples]}
    columns = {f"probability_{n}": result.probabilities[:, i] for i, n in enumerate(result.labels)}
    return pd.DataFrame({**found, **columns})
