"""The audit of a table: what was planted is found, decisions are applied, nothing is lost."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tiny
from taskfit.curate.settings import NearStep
from taskfit.data import Example, read_table
from taskfit.errors import DataError, SettingsError
from taskfit.labels import audit as rooms
from taskfit.labels.audit import audit
from taskfit.labels.audit_apply import apply_decisions
from taskfit.runs.training_table import asked_and_rows
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from tiny_screens import NotingScreen

FLIPPED = (5, 40, 77)
OTHER = {"good": "bad", "bad": "good"}


@pytest.fixture(autouse=True)
def _tiny_encoder(monkeypatch: pytest.MonkeyPatch, encoder_folder: Path) -> None:
    """Take a tiny encoder for near copies: only texts that are the same count."""
    near = NearStep(step="near", encoder=str(encoder_folder), threshold=1.0)
    monkeypatch.setattr(rooms, "NEAR", near)


def rows_of(count: int = 100) -> list[tuple[str, str]]:
    """Return texts and labels, three of these wrong."""
    examples = tiny.toy_examples(count)
    return [
        (e.texts["text"], OTHER[str(e.label)] if i in FLIPPED else str(e.label))
        for i, e in enumerate(examples)
    ]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return path


def settings_of(table: Path, model: Path, *, method: str = "tfidf", **data: object) -> RunSettings:
    given = {
        "data": {"train": str(table), **data},
        "model": {"name": str(model), "device": "cpu", "dtype": "float32"},
        "method": {"name": method},
    }
    return settings_from_dict(given)


@pytest.fixture
def found(tmp_path: Path, model_folder: Path) -> Callable[..., rooms.Audit]:
    """Audit rows; the table is tickets.csv and the folder is audit."""

    def run(rows: list[tuple[str, str]], **data: object) -> rooms.Audit:
        table = write(tmp_path / "tickets.csv", rows)
        return audit(settings_of(table, model_folder, **data), tmp_path / "audit")

    return run


def of_kind(result: rooms.Audit, kind: str) -> pd.DataFrame:
    return result.findings[result.findings["kind"] == kind]


def lines(table: pd.DataFrame) -> set[int]:
    """Return the rows (from 0) that findings are about."""
    return {int(name.rsplit(":", 1)[1]) - 2 for name in table["id"]}


def test_flipped_labels_are_found_first_with_the_right_ones_suggested(found: Callable) -> None:
    rows = rows_of()
    result = found(rows)
    errors = of_kind(result, "label error")
    assert lines(errors.head(len(FLIPPED))) == set(FLIPPED)
    assert all(OTHER[row.label] == row.suggested for row in errors.itertuples())
    assert errors["rank"].tolist() == list(range(1, len(errors) + 1))
    probabilities = errors["probability"].astype(float)
    assert (probabilities.diff().dropna() >= 0).all()
    assert result.probabilities.shape == (100, 2)


def test_no_copy_of_a_text_helps_to_judge_it(found: Callable) -> None:
    # Twenty copies of a flipped row: a fit that had seen one would call the label right.
    text, _ = tiny.toy_examples(1)[0].texts["text"], None
    rows = [*rows_of(), *[(text.upper(), "bad")] * 20]
    errors = of_kind(found(rows), "label error")
    assert set(range(100, 120)) <= lines(errors)


def test_each_kind_of_trouble_is_found(found: Callable, tmp_path: Path) -> None:
    rows = rows_of()
    test = write(tmp_path / "june.csv", [(rows[3][0], "bad"), ("Never seen it.", "good")])
    rows += [
        (rows[0][0].upper(), "bad"),
        ("", "good"),
        ("a text", ""),
        ("It was cafÃ© </s> time", "Good"),
        ("The dog was lovely " * 200, "good"),
        ("What?", "n/a"),
    ]
    result = found(rows, tests={"june": str(test)})
    assert lines(of_kind(result, "conflicting copies")) == {0, 100}
    assert lines(of_kind(result, "in evaluation")) == {3}
    assert of_kind(result, "in evaluation")["related"].tolist() == [f"{test}:2"]
    assert lines(of_kind(result, "no text")) == {101}
    assert lines(of_kind(result, "no label")) == {102}
    assert lines(of_kind(result, "spoilt characters")) == {103}
    assert lines(of_kind(result, "control tokens")) == {103}
    assert lines(of_kind(result, "too long")) == {104}
    similar = of_kind(result, "similar labels")
    assert dict(zip(similar["label"], similar["suggested"], strict=True)) == {
        "Good": "good",
        "n/a": "",
    }
    assert set(of_kind(result, "small class")["label"]) == {"Good", "n/a"}
    assert result.counts == {
        kind: int((result.findings["kind"] == kind).sum()) for kind in result.counts
    }


def test_the_page_shows_texts_as_they_are_and_names_every_kind(
    found: Callable, tmp_path: Path
) -> None:
    rows = [*rows_of(), ("<b>bold</b> & more", "good"), ("<b>bold</b> & more", "bad")]
    result = found(rows)
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page
    assert "<b>bold" not in page
    assert "http" not in page.replace("https://", "http")  # it opens without a network
    described = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert described["counts"] == result.counts
    kept = pd.read_parquet(tmp_path / "audit" / "probabilities.parquet")
    assert kept[["probability_bad", "probability_good"]].sum(axis=1).round(6).eq(1).all()


def test_several_labels_a_text_are_judged_each_by_itself(
    tmp_path: Path, model_folder: Path
) -> None:
    examples = tiny.toy_examples(100)
    rows = []
    for i, e in enumerate(examples):
        names = [str(e.label), *(["park"] if "dog" in e.texts["text"] else [])]
        if i == 10:
            names.remove(str(e.label))
        rows.append((e.texts["text"], "|".join(names)))
    settings = settings_of(write(tmp_path / "tickets.csv", rows), model_folder)
    several = settings.task.model_copy(update={"multi_label": True})
    result = audit(settings.model_copy(update={"task": several}), tmp_path / "audit")
    errors = of_kind(result, "label error")
    (missing,) = (row for row in errors.itertuples() if row.id.endswith(":12"))
    assert missing.suggested.split("|") == ["good"]
    assert missing.note == "also good"


def decide(folder: Path, **by_id: str) -> Path:
    """Write decisions about rows, by the number in their id, into a copy of the findings."""
    table = read_table(str(folder / "audit.csv"))
    numbers = [name.rsplit(":", 1)[-1] for name in table["id"]]
    table["decision"] = [by_id.get(f"row{number}", "") for number in numbers]
    path = folder / "decisions.csv"
    table.to_csv(path, index=False)
    return path


def test_decisions_change_what_they_say_and_no_other_letter(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    rows = [*rows_of(), ('He said: "no",\nthen left.', "bad"), ("THE DOG", "good")]
    found(rows)
    table = tmp_path / "tickets.csv"
    path = decide(tmp_path / "audit", row7="relabel", row42="remove", row79="label:good")
    done = apply_decisions(settings_of(table, model_folder), path, tmp_path / "out.csv")
    assert (done.num_rows, done.num_removed, done.num_relabelled) == (101, 1, 1)
    before, after = (p.read_text().splitlines() for p in (table, tmp_path / "out.csv"))
    expected = list(before)
    expected[6] = expected[6].replace("good", "bad")
    del expected[41]
    assert after == expected  # row 79 is called good already


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_a_table_of_another_format_keeps_its_types(
    tmp_path: Path, model_folder: Path, ending: str
) -> None:
    rows = [{"text": t, "label": int(y == "good"), "n": i} for i, (t, y) in enumerate(rows_of())]
    table, path = pd.DataFrame(rows), tmp_path / f"tickets{ending}"
    if ending == ".tsv":
        table.to_csv(path, sep="\t", index=False)
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path, index=False)
    settings = settings_of(path, model_folder, text=["text"])
    result = audit(settings, tmp_path / "audit")
    worst = of_kind(result, "label error").iloc[0]
    number = worst["id"].rsplit(":", 1)[-1]
    decisions = decide(tmp_path / "audit", **{f"row{number}": "relabel"})
    out = tmp_path / f"out{ending}"
    plain = settings_of(path, model_folder)  # columns come from the audit's folder
    apply_decisions(plain, decisions, out)
    if ending == ".tsv":
        after = pd.read_csv(out, sep="\t")
    elif ending == ".jsonl":
        after = pd.read_json(out, lines=True)
    else:
        after = pd.read_parquet(out)
    place = int(after.index[after["text"] == worst["text"]][0])
    table.loc[place, "label"] = 1 - table.loc[place, "label"]
    pd.testing.assert_frame_equal(after, table)


def test_a_decision_about_a_label_goes_for_all_its_rows_but_those_decided_on(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    rows = [
        (t, "goods" if y == "good" and i % 10 == 0 else y) for i, (t, y) in enumerate(rows_of())
    ]
    found(rows)
    path = tmp_path / "audit" / "audit.csv"
    table = read_table(str(path))
    table["decision"] = ["relabel" if kind == "similar labels" else "" for kind in table["kind"]]
    table.to_csv(path, index=False)
    apply_decisions(settings_of(tmp_path / "tickets.csv", model_folder), path, tmp_path / "o.csv")
    after = pd.read_csv(tmp_path / "o.csv")["label"].tolist()
    assert after == [label for _, label in rows_of()]


def test_all_that_is_wrong_with_decisions_is_said_at_once_and_nothing_written(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    found(rows_of())
    table = read_table(str(tmp_path / "audit" / "audit.csv"))
    first, second = (table.iloc[place].to_dict() for place in (0, 1))
    rows = [
        {**first, "decision": "goood"},
        {**first, "decision": "remove", "id": "tickets.csv:9999"},
        {**first, "decision": "bad", "id": "t:3"},
        {**second, "decision": "Keep"},
        {**second, "decision": "remove"},
    ]
    table = pd.DataFrame(rows)
    path = tmp_path / "bad.csv"
    table.to_csv(path, index=False)
    settings = settings_of(tmp_path / "tickets.csv", model_folder, text=["text"])
    with pytest.raises(DataError) as caught:
        apply_decisions(settings, path, tmp_path / "out.csv")
    for part in (
        "'goood' is neither keep, remove or relabel nor a label of the table. Did you mean good?",
        "no row 'tickets.csv:9999'",
        "t:3 says something else than it did when it was audited",
        f"'remove' for {second['id']}",
        "says 'keep'",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_new_label_has_to_be_asked_for(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    found(rows_of())
    path = decide(tmp_path / "audit", row7="so-so")
    settings = settings_of(tmp_path / "tickets.csv", model_folder)
    with pytest.raises(DataError, match="--new-labels"):
        apply_decisions(settings, path, tmp_path / "out.csv")
    apply_decisions(settings, path, tmp_path / "out.csv", new_labels=True)
    assert pd.read_csv(tmp_path / "out.csv")["label"][5] == "so-so"


def test_no_file_is_written_over(found: Callable, tmp_path: Path, model_folder: Path) -> None:
    found(rows_of())
    table = tmp_path / "tickets.csv"
    settings, path = settings_of(table, model_folder), decide(tmp_path / "audit", row7="relabel")
    before = table.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"would be written over.*with -o\.$"):
            apply_decisions(settings, path, table, overwrite=overwrite)
    assert table.read_bytes() == before
    out = write(tmp_path / "out.csv", rows_of(2))
    with pytest.raises(SettingsError, match="is there already"):
        apply_decisions(settings, path, out)
    apply_decisions(settings, path, out, overwrite=True)
    (tmp_path / "audit" / "audit.csv").write_bytes(path.read_bytes())
    with pytest.raises(SettingsError, match="holds 1 decisions"):
        found(rows_of())
    with pytest.raises(DataError, match="holds no decision"):
        apply_decisions(settings, decide(tmp_path / "audit"), tmp_path / "none.csv")


def test_a_killed_audit_goes_on_behind_its_last_fit(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(write(tmp_path / "tickets.csv", rows_of()), model_folder)
    whole = audit(settings, tmp_path / "whole")
    fits = 0

    def stopped(*_: object, **__: object) -> None:
        nonlocal fits
        fits += 1
        if fits == 3:
            raise KeyboardInterrupt

    from taskfit.methods.tfidf import Tfidf

    prepare = Tfidf.prepare
    monkeypatch.setattr(Tfidf, "prepare", lambda *args: (stopped(), prepare(*args))[1])
    with pytest.raises(KeyboardInterrupt):
        audit(settings, tmp_path / "audit")
    screen = NotingScreen()
    again = audit(settings, tmp_path / "audit", screen=screen)
    assert fits == 2 + 1 + 3  # two were kept, the third was interrupted
    assert (again.probabilities == whole.probabilities).all()
    pd.testing.assert_frame_equal(again.findings, whole.findings)
    audit(settings, tmp_path / "audit", screen=screen)
    assert fits == 6
    assert any("taken from" in note for note in screen.notes)


@pytest.mark.parametrize("method", ["head", "in_context", "probe", "majority"])
def test_every_row_is_judged_whatever_the_method(
    tmp_path: Path, model_folder: Path, method: str
) -> None:
    table = write(tmp_path / "tickets.csv", rows_of(24))
    settings = settings_of(table, model_folder, method=method)
    if method == "head":
        training = settings.training.model_copy(update={"max_steps": 2, "tensorboard": False})
        settings = settings.model_copy(update={"training": training})
    result = audit(settings, tmp_path / "audit")
    assert result.probabilities.shape == (24, 2)
    assert ((result.probabilities >= 0) & (result.probabilities <= 1)).all()


def test_a_table_without_findings_can_be_audited_again(found: Callable, tmp_path: Path) -> None:
    rows = [(e.texts["text"], str(e.label)) for e in tiny.toy_examples(60)]
    assert not len(found(rows).findings)
    assert not len(found(rows).findings)


def test_a_run_and_folders_of_the_user_are_left_alone(tmp_path: Path, model_folder: Path) -> None:
    settings = settings_of(write(tmp_path / "tickets.csv", rows_of()), model_folder)
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.yaml").write_text("seed: 7\n")
    with pytest.raises(SettingsError, match="is the folder of a run"):
        audit(settings, run)
    assert (run / "settings.yaml").read_text() == "seed: 7\n"
    mine = tmp_path / "fits" / "of-last-year"
    mine.mkdir(parents=True)
    audit(settings, tmp_path)
    assert mine.is_dir()


def test_fits_by_another_wording_of_the_task_are_not_taken(
    tmp_path: Path, model_folder: Path
) -> None:
    settings = settings_of(
        write(tmp_path / "tickets.csv", rows_of(24)), model_folder, method="in_context"
    )
    task = tmp_path / "task.yaml"
    settings = settings.model_copy(
        update={"task": settings.task.model_copy(update={"name": str(task)})}
    )
    found = []
    for line in ("Text: {text}\\nLabel:{label}", "{text} It was{label}"):
        task.write_text(
            "name: toy\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
            f'template: {{line: "{line}"}}\n'
        )
        found.append(audit(settings, tmp_path / "audit").probabilities)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_what_separates_columns_stays(tmp_path: Path, model_folder: Path, separator: str) -> None:
    table = tmp_path / "tickets.csv"
    pd.DataFrame(rows_of(), columns=["text", "label"]).to_csv(table, sep=separator, index=False)
    settings = settings_of(table, model_folder)
    audit(settings, tmp_path / "audit")
    path = decide(tmp_path / "audit", row7="relabel")
    apply_decisions(settings, path, tmp_path / "out.csv")
    after = read_table(str(tmp_path / "out.csv"))
    assert after["text"].tolist() == [text for text, _ in rows_of()]
    assert after["label"][7] == "bad"


def test_relabel_without_a_suggestion_takes_no_labels_away(
    tmp_path: Path, model_folder: Path
) -> None:
    rows = [(e.texts["text"], str(e.label)) for e in tiny.toy_examples(100)]
    test = write(tmp_path / "june.csv", rows[3:5])
    table = write(tmp_path / "tickets.csv", rows)
    settings = settings_of(table, model_folder, tests={"june": str(test)})
    several = settings.task.model_copy(update={"multi_label": True})
    settings = settings.model_copy(update={"task": several})
    audit(settings, tmp_path / "audit")
    path = decide(tmp_path / "audit", row5="relabel")
    with pytest.raises(DataError, match="no label is suggested; write its name, or label: alone"):
        apply_decisions(settings, path, tmp_path / "out.csv")
    path = decide(tmp_path / "audit", row5="label:")
    apply_decisions(settings, path, tmp_path / "out.csv")
    assert read_table(str(tmp_path / "out.csv"))["label"][5] == ""


def test_every_line_ends_as_the_table_has_it(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    found([(f"{text}\nbye", label) for text, label in rows_of()])
    table = tmp_path / "tickets.csv"
    content = table.read_bytes()
    for end in (b"label", b"good", b"bad"):
        content = content.replace(end + b"\n", end + b"\r\n")
    table.write_bytes(content)
    path = decide(tmp_path / "audit", row12="relabel")
    apply_decisions(settings_of(table, model_folder), path, tmp_path / "out.csv")
    before, after = (p.read_bytes().split(b"\r\n") for p in (table, tmp_path / "out.csv"))
    assert after == [*before[:6], before[6].replace(b"good", b"bad"), *before[7:]]


def test_a_decision_about_a_label_of_another_table_is_told(
    found: Callable, tmp_path: Path, model_folder: Path
) -> None:
    found([*rows_of(), ("What?", "n/a")])
    path = tmp_path / "audit" / "audit.csv"
    table = read_table(str(path))
    table["decision"] = ["good" if label == "n/a" else "" for label in table["label"]]
    table.to_csv(path, index=False)
    write(tmp_path / "tickets.csv", rows_of())
    settings = settings_of(tmp_path / "tickets.csv", model_folder)
    with pytest.raises(DataError, match="the table has no label 'n/a'"):
        apply_decisions(settings, path, tmp_path / "out.csv", overwrite=True)


@pytest.mark.parametrize(("ending", "out"), [(".jsonl", ".csv"), (".csv", ".csv"), (".jsonl",) * 2])
def test_lists_of_labels_stay_lists(
    tmp_path: Path, model_folder: Path, ending: str, out: str
) -> None:
    wrong = {i: [y, "x"] for i, (_, y) in enumerate(rows_of()) if i in FLIPPED}
    rows = [{"text": t, "label": wrong.get(i, [y])} for i, (t, y) in enumerate(rows_of())]
    table, path = pd.DataFrame(rows), tmp_path / f"tickets{ending}"
    if ending == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    settings = settings_of(path, model_folder)
    several = settings.task.model_copy(update={"multi_label": True})
    settings = settings.model_copy(update={"task": several})
    audit(settings, tmp_path / "audit")
    kinds = read_table(str(tmp_path / "audit" / "audit.csv"))
    number = kinds[kinds["kind"] == "label error"]["id"].iloc[0].rsplit(":", 1)[-1]
    decisions = decide(tmp_path / "audit", **{f"row{number}": "label:bad|good|x"})
    apply_decisions(settings, decisions, tmp_path / f"out{out}")
    task, examples, _ = asked_and_rows(read_table(str(tmp_path / f"out{out}")), settings)
    assert task.label_names == ["bad", "good", "x"]
    at = int(number) - 1 - (ending == ".csv")
    expected = [set(wrong.get(i, [y])) for i, (_, y) in enumerate(rows_of())]
    expected[at] = {"bad", "good", "x"}
    assert [set(example.labels) for example in examples] == expected


def test_a_label_that_holds_the_mark_between_labels_is_told(
    tmp_path: Path, model_folder: Path
) -> None:
    rows = [{"text": t, "label": ["a|b" if y == "bad" else y]} for t, y in rows_of()]
    path = tmp_path / "tickets.jsonl"
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    settings = settings_of(path, model_folder, text=["text"], label="label")
    several = settings.task.model_copy(update={"multi_label": True})
    settings = settings.model_copy(update={"task": several})
    with pytest.raises(DataError, match=r"the label 'a\|b' holds a '\|'"):
        apply_decisions(settings, tmp_path / "none.csv", tmp_path / "out.jsonl")


def test_of_as_many_copies_the_fits_decide_of_several_labels_too() -> None:
    from taskfit.labels.audit_looks import conflicting_copies

    task = replace(tiny.toy_task(), multi_label=True)
    named = [Example(str(i), {"text": "t"}, n) for i, n in enumerate(("bad", "bad|good"))]
    for good, suggested in ((0.1, ["", "bad"]), (0.9, ["bad|good", ""])):
        probabilities = np.array([[0.9, good]] * 2)
        found = conflicting_copies(named, np.zeros(2, np.int64), task, probabilities)
        assert [one.suggested for one in found] == suggested


def test_what_cannot_be_audited_is_said(tmp_path: Path, model_folder: Path) -> None:
    few = settings_of(write(tmp_path / "few.csv", rows_of(6)), model_folder)
    with pytest.raises(SettingsError, match=r"6 texts .* are too few"):
        audit(few, tmp_path / "audit")
    shares = settings_of(tmp_path / "few.csv", model_folder, soft_labels={"good": "label"})
    with pytest.raises(SettingsError, match="soft_labels"):
        audit(shares, tmp_path / "audit")
    empty = write(tmp_path / "empty.csv", [("", "good"), ("text", "")])
    with pytest.raises(DataError, match="no row has both a text and a label"):
        audit(settings_of(empty, model_folder, text=["text"], label="label"), tmp_path / "audit")


def test_similar_names_are_told_from_numbered_and_short_ones() -> None:
    from taskfit.labels.audit_looks import similar_labels

    def examples(*names: str) -> list[Example]:
        return [Example(str(i), {"text": "t"}, name) for i, name in enumerate(names)]

    pairs = {
        ("refund", "refund", "refunds"): {"refunds": "refund"},
        ("card payment", "card payment", "card_payment"): {"card_payment": "card payment"},
        ("delivery", "delivery", "delivry"): {"delivry": "delivery"},
        ("class 1", "class 2"): {},
        ("cat", "car"): {},
        ("positive", "negative"): {},
        ("plan a", "plan b"): {},
    }
    for names, expected in pairs.items():
        found = {one.label: one.suggested for one in similar_labels(examples(*names))}
        assert found == expected, names


def test_texts_that_all_look_alike_are_judged_all_the_same(
    tmp_path: Path,
    model_folder: Path,
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = NearStep(step="near", encoder=str(encoder_folder), threshold=0.01)
    monkeypatch.setattr(rooms, "NEAR", near)
    settings = settings_of(write(tmp_path / "tickets.csv", rows_of()), model_folder)
    screen = NotingScreen()
    result = audit(settings, tmp_path / "audit", screen=screen)
    assert set(FLIPPED) <= lines(of_kind(result, "label error"))
    assert any("nearly all texts are near copies" in note for note in screen.notes)
