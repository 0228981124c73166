"""`taskfit audit` as a user types it: from a table to a corrected one that can be fitted."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from taskfit.curate.settings import NearStep


@pytest.fixture(autouse=True)
def _tiny_encoder(monkeypatch: pytest.MonkeyPatch, encoder_folder: Path) -> None:
    near = NearStep(step="near", encoder=str(encoder_folder), threshold=1.0)
    monkeypatch.setattr("taskfit.labels.audit.NEAR", near)


def test_a_table_is_audited_corrected_and_fitted(shell: Any) -> None:
    table = pd.read_csv(shell.folder / "train.csv")
    table.loc[8, "label"] = "bad"
    table.to_csv(shell.folder / "train.csv", index=False)
    given = ("--model", str(shell.model), "--method", "tfidf")
    code, out, err = shell("audit", "train.csv", *given)
    assert code == 0, err
    assert "Suspected label errors" in out
    assert "train.csv:10" in out
    path = shell.folder / "audits" / "train" / "audit.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = "relabel" if row["id"] == "train.csv:10" else ""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    again, _, err = shell("audit", "train.csv", *given)
    assert (again, "1 decisions" in err) == (2, True)
    code, out, err = shell("audit", "train.csv", "--apply", str(path), "-o", "corrected.csv")
    assert code == 0, err
    assert "60 rows; 0 removed, 1 with another label" in out
    after = pd.read_csv(shell.folder / "corrected.csv")
    assert after["label"].tolist() == [*table["label"][:8], "good", *table["label"][9:]]
    code, _, err = shell("fit", "corrected.csv", *given, "--out", "run")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "No table: taskfit audit mine.csv"),
        (["train.csv", "--new-labels"], "--new-labels goes with --apply"),
        (["train.csv", "--apply", "train.csv"], "Where to?"),
        (["train.csv", "--apply", "train.csv", "-o", "new.csv"], "has no column decision"),
        (["train.csv", "--apply", "train.csv", "-o", "new.doc"], "tables are written as .csv"),
        (["train.csv", "--method", "sft"], "learns from rows of text, not from labels"),
        (["trian.csv"], "There is no file trian.csv. Did you mean train.csv?"),
    ],
)
def test_what_does_not_go_is_said_in_one_message(
    shell: Any, refused: Any, arguments: list[str], says: str
) -> None:
    assert says in refused("audit", *arguments, *(["--model", str(shell.model)] * bool(arguments)))
