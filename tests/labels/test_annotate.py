"""An endpoint as the annotator: what it says, what it costs, what people say of it."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
from chat_server import ChatServer, Reply, answer, error
from taskfit.errors import DataError, SettingsError, TaskfitError
from taskfit.labels.annotate import annotate
from taskfit.labels.annotate_files import Annotation
from taskfit.remote import RemoteError
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.screen import SilentScreen
from taskfit.settings_file import load_settings

TASK = (
    "name: toy\ntext: text\nlabels: [{name: bad, words: [' dire']}, {name: good, words: [' fine']}]"
    "\ntemplate: {line: 'Text: {text}\\nLabel:{label}'}\n"
)
EXAMPLES = tiny.toy_examples(12)


def is_good(body: dict[str, Any]) -> bool:
    return any(word in body["messages"][-1]["content"] for word in tiny.GOOD)


def with_log_probs(body: dict[str, Any]) -> Reply:
    good = is_good(body)
    top = {"fine" if good else "dire": np.log(0.8), "dire" if good else "fine": np.log(0.2)}
    return answer("fine" if good else "dire", top=top)


def in_words(body: dict[str, Any]) -> Reply:
    return answer("It is fine." if is_good(body) else "Dire!")


def settings_of(server: ChatServer, folder: Path, *sets: str, table: str = "texts.csv") -> Any:
    (folder / "task.yaml").write_text(TASK)
    if not (folder / "texts.csv").is_file():
        texts = pd.DataFrame([{"text": e.texts["text"], "queue": "ü"} for e in EXAMPLES])
        texts.to_csv(folder / "texts.csv", index=False)
    given = (
        f"task.name={folder / 'task.yaml'}",
        f"data.train={folder / table}",
        "method.name=remote",
        *server.settings,
    )
    return load_settings(overrides=[*given, *sets])


def labelled(settings: Any, folder: Path, **options: Any) -> tuple[Annotation, pd.DataFrame]:
    found = annotate(settings, folder / "soft.csv", screen=SilentScreen(), **options)
    return found, pd.read_csv(folder / "soft.csv", keep_default_na=False)


def test_shares_are_the_probabilities_of_method_remote(server: ChatServer, tmp_path: Path) -> None:
    server.then = with_log_probs
    settings = settings_of(server, tmp_path)
    found, table = labelled(settings, tmp_path)
    assert found.read_from == {"log-probs": len(EXAMPLES)}
    assert table["predicted"].tolist() == [e.label for e in EXAMPLES]
    assert table["queue"].tolist() == ["ü"] * len(EXAMPLES)
    assert found.usage.cost == pytest.approx(len(EXAMPLES) * 14e-6)
    sent = len(server.bodies)
    # The same endpoint as a method is asked the same, so nothing is sent again.
    path = tiny.write_csv(tmp_path / "test.csv", EXAMPLES)
    measured = settings.model_copy(
        update={"data": settings.data.model_copy(update={"train": None, "tests": {"t": str(path)}})}
    )
    fit(measured, tmp_path / "run")
    predicted = Classifier.load(tmp_path / "run", device="cpu").probabilities(EXAMPLES)
    np.testing.assert_array_equal(table[["p_bad", "p_good"]].to_numpy(float), predicted)
    assert len(server.bodies) == sent


def test_samples_give_the_shares_of_their_answers(server: ChatServer, tmp_path: Path) -> None:
    def wavering(body: dict[str, Any]) -> Reply:
        # One in four says the other; one in four names no label.
        seed = body.get("seed", 0)
        words = ["fine", "dire"] if is_good(body) else ["dire", "fine"]
        return answer([words[0], words[0], words[1], "I cannot say."][seed])

    server.then = wavering
    found, table = labelled(settings_of(server, tmp_path, "remote.samples=4"), tmp_path)
    assert found.read_from == {"samples": len(EXAMPLES)}
    # The first text is asked greedily too, which shows that there are no log-probabilities.
    assert len(server.bodies) == 4 * len(EXAMPLES) + 1
    right = [float(row[f"p_{e.label}"]) for e, row in zip(EXAMPLES, table.iloc, strict=True)]
    np.testing.assert_allclose(right, 2 / 3, atol=1e-3)
    assert found.paid.num_answers == len(server.bodies)


def test_samples_are_not_drawn_where_log_probs_are_given(
    server: ChatServer, tmp_path: Path
) -> None:
    server.then = with_log_probs
    found, _ = labelled(settings_of(server, tmp_path, "remote.samples=5"), tmp_path)
    assert len(server.bodies) == len(EXAMPLES)
    assert found.estimate.num_requests == 5 * len(EXAMPLES) + 1  # at most


def test_an_answer_that_names_no_label_is_counted_and_left_for_people(
    server: ChatServer, tmp_path: Path
) -> None:
    def unsure(body: dict[str, Any]) -> Reply:
        river = "river" in body["messages"][-1]["content"]
        return answer("fine and dire") if river else in_words(body)

    server.then = unsure
    texts = [*EXAMPLES[:4], *tiny.toy_examples(2, offset=60)]
    assert "river" in texts[-1].texts["text"]
    rows = [{"text": e.texts["text"]} for e in texts] + [{"text": " "}]
    pd.DataFrame(rows).to_csv(tmp_path / "texts.csv", index=False)
    found, table = labelled(settings_of(server, tmp_path), tmp_path)
    assert len(table) == 4
    assert (found.num_unanswered, found.num_not_asked) == (3, 0)
    without = pd.read_csv(tmp_path / "soft.unanswered.csv")
    assert without["error"].tolist() == [
        "the answer names no label: 'fine and dire'",
        "the answer names no label: 'fine and dire'",
        "the row has no text",
    ]


def test_labels_that_people_gave_to_rows_without_an_answer_are_not_lost(
    server: ChatServer, tmp_path: Path
) -> None:
    server.then = lambda body: in_words(body) if is_good(body) else answer("Who knows?")
    settings, path = settings_of(server, tmp_path), tmp_path / "soft.unanswered.csv"
    labelled(settings, tmp_path)
    labelled(settings, tmp_path)  # as it was written, it is written anew
    table = pd.read_csv(path)
    table.assign(label="bad").to_csv(path, index=False)
    before = path.read_bytes()
    sent = len(server.bodies)
    with pytest.raises(SettingsError, match=r"unanswered.csv has changed since it was written"):
        labelled(settings, tmp_path)
    assert (path.read_bytes(), len(server.bodies)) == (before, sent)
    labelled(settings, tmp_path, overwrite=True)
    assert "label" not in pd.read_csv(path)


def test_columns_of_the_user_that_are_called_like_ours_are_kept(
    server: ChatServer, tmp_path: Path
) -> None:
    server.then = lambda body: in_words(body) if is_good(body) else answer("Who knows?")
    rows = [
        {"text": e.texts["text"], "error": f"E{i}", "read_from": f"R{i}"}
        for i, e in enumerate(EXAMPLES)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "texts.csv", index=False)
    _, table = labelled(settings_of(server, tmp_path), tmp_path)
    without = pd.read_csv(tmp_path / "soft.unanswered.csv")
    for part in (table, without):
        numbers = part["text_error"].str[1:]
        assert [rows[int(n)]["text"] for n in numbers] == part["text"].tolist()
    assert table["text_read_from"].str[1:].tolist() == table["text_error"].str[1:].tolist()
    assert set(table["read_from"]) == {"answer"}
    assert without["read_from"].str.startswith("R").all()


def test_rows_that_stand_on_one_line_are_all_asked_about(
    server: ChatServer, tmp_path: Path
) -> None:
    server.then = with_log_probs
    rows = [{"text": e.texts["text"]} for e in EXAMPLES]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    check = [{"text": e.texts["text"], "label": e.label} for e in tiny.toy_examples(5, offset=100)]
    (tmp_path / "check.json").write_text(json.dumps(check))
    settings = settings_of(server, tmp_path, table="texts.json")
    found, table = labelled(settings, tmp_path, check=str(tmp_path / "check.json"))
    assert table["text"].tolist() == [row["text"] for row in rows]
    assert found.agreement is not None
    assert found.agreement.evaluation.num_examples == 5
    assert found.num_not_asked == 0


def test_no_answer_at_all_is_one_message(server: ChatServer, tmp_path: Path) -> None:
    server.then = lambda body: answer("As a language model, I")
    with pytest.raises(DataError, match=r"None of 12 answers.*bad, good.*As a language model"):
        labelled(settings_of(server, tmp_path), tmp_path)
    assert not (tmp_path / "soft.csv").exists()


def test_a_limit_leaves_what_is_labelled_and_the_same_command_goes_on(
    server: ChatServer, tmp_path: Path
) -> None:
    server.then = with_log_probs
    limited = settings_of(server, tmp_path, "remote.max_requests=5")
    found, table = labelled(limited, tmp_path)
    assert (len(table), found.num_not_asked, len(server.bodies)) == (5, 7, 5)
    assert found.stopped is not None
    assert "5 requests that are allowed" in found.stopped
    found, table = labelled(limited, tmp_path)
    assert (len(table), len(server.bodies)) == (10, 10)
    found, table = labelled(limited, tmp_path)
    assert (len(table), len(server.bodies), found.stopped) == (12, 12, None)
    assert found.paid.cost == pytest.approx(12 * 14e-6)
    assert found.usage.num_requests == 2


def test_a_budget_that_holds_nothing_is_one_message(server: ChatServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The budget of 1e-09 is used up"):
        labelled(settings_of(server, tmp_path, "remote.budget=1e-9"), tmp_path)
    assert not server.bodies


def test_a_server_that_dies_costs_nothing_twice(server: ChatServer, tmp_path: Path) -> None:
    turn = itertools.count()

    def dies(body: dict[str, Any]) -> Reply:
        return with_log_probs(body) if next(turn) < 6 else error(503, "overloaded")

    server.then = dies
    settings = settings_of(server, tmp_path)
    with pytest.raises(RemoteError, match=r"overloaded.*6 of 12 answers are safe"):
        labelled(settings, tmp_path)
    assert not (tmp_path / "soft.csv").exists()
    server.then = with_log_probs
    server.bodies.clear()
    found, table = labelled(settings, tmp_path)
    assert (len(table), len(server.bodies), found.usage.num_requests) == (12, 6, 6)


def test_an_estimate_sends_and_writes_nothing(server: ChatServer, tmp_path: Path) -> None:
    found = annotate(
        settings_of(server, tmp_path),
        tmp_path / "soft.csv",
        screen=SilentScreen(),
        only_estimate=True,
    )
    assert found.files is None
    assert found.estimate.num_requests == len(EXAMPLES)
    assert found.estimate.cost is not None
    assert not server.bodies
    assert not list(tmp_path.glob("soft*"))


def test_labels_in_the_table_check_the_annotator(server: ChatServer, tmp_path: Path) -> None:
    server.then = with_log_probs
    rows = [{"text": e.texts["text"], "label": e.label} for e in tiny.toy_examples(40)]
    for row in rows[30:]:
        row["label"] = ""
    rows[0]["label"], rows[2]["label"] = "bad", "bad"  # people who disagree
    pd.DataFrame(rows).to_csv(tmp_path / "some.csv", index=False)
    settings = settings_of(server, tmp_path, table="some.csv")
    found, table = labelled(settings, tmp_path, calibrate=True)
    assert found.agreement is not None
    assert found.calibrated is not None
    assert found.temperature is not None
    assert found.agreement.evaluation.num_examples == 30
    assert found.agreement.evaluation.accuracy == pytest.approx(28 / 30)
    low, high = found.agreement.kappa_interval
    assert low < found.agreement.kappa < high
    # 0.8 where 0.93 is right is too unsure: colder, and nearer to what people say.
    assert found.temperature.temperature < 1
    assert found.calibrated.brier < found.agreement.brier
    assert (table[["p_bad", "p_good"]].astype(float).max(axis=1) > 0.8).all()
    assert not any("label" in body for body in server.bodies)
    report = json.loads((tmp_path / "soft.report.json").read_text())
    assert report["agreement"]["by_label"][0]["num_human"] == 17
    assert report["usage"]["num_requests"] == 40


def test_examples_that_are_shown_do_not_check(server: ChatServer, tmp_path: Path) -> None:
    server.then = with_log_probs
    check = tiny.write_csv(tmp_path / "check.csv", tiny.toy_examples(10, offset=100))
    settings = settings_of(server, tmp_path, "method.num_demonstrations=4")
    found, _ = labelled(settings, tmp_path, check=str(check))
    assert found.agreement is not None
    assert found.agreement.evaluation.num_examples == 6
    assert all(len(body["messages"]) == 10 for body in server.bodies)


def test_the_settings_beside_the_shares_fit_and_measure_on_people(
    server: ChatServer, tmp_path: Path, model_folder: Path
) -> None:
    server.then = with_log_probs
    check = tiny.write_csv(tmp_path / "check.csv", tiny.toy_examples(10, offset=100))
    labelled(settings_of(server, tmp_path), tmp_path, check=str(check))
    given = [
        f"model.name={model_folder}",
        "model.dtype=float32",
        "training.max_steps=1",
        "training.tensorboard=false",
        "method.name=distill",
        "method.teacher=soft_labels",
    ]
    settings = load_settings(tmp_path / "soft.fit.yaml", overrides=given)
    result = fit(settings, tmp_path / "run").result
    assert result.num_train == len(EXAMPLES)
    assert set(result.evaluations) == {"human"}


@pytest.mark.parametrize(
    ("sets", "options", "told"),
    [
        (("task.multi_label=true",), {}, "task.multi_label"),
        (("remote.model=null",), {}, "remote.model"),
        (("remote.base_url=nowhere",), {}, "http://"),
        ((), {"calibrate": True}, "--check"),
        (("task.name=null",), {}, "--task"),
    ],
)
def test_what_does_not_suit_is_told_before_anything_is_sent(
    server: ChatServer, tmp_path: Path, sets: tuple[str, ...], options: Any, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        labelled(settings_of(server, tmp_path, *sets), tmp_path, **options)
    assert not server.bodies


@pytest.mark.parametrize(
    ("status", "told"), [(401, "without a key"), (404, "does not know the model 'tiny'")]
)
def test_a_refusal_is_one_message(
    server: ChatServer, tmp_path: Path, status: int, told: str
) -> None:
    server.then = lambda body: error(status)
    with pytest.raises(RemoteError, match=told):
        labelled(settings_of(server, tmp_path), tmp_path)
    assert len(server.bodies) == 1


def test_a_label_of_another_task_is_told(server: ChatServer, tmp_path: Path) -> None:
    pd.DataFrame([{"text": "a b", "label": "other"}]).to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(DataError, match=r"unknown label.*other.*--check"):
        labelled(settings_of(server, tmp_path, table="odd.csv"), tmp_path)


def test_the_table_that_is_read_is_not_written_over(server: ChatServer, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path)
    with pytest.raises(TaskfitError, match="would be written over"):
        annotate(settings, tmp_path / "texts.csv", screen=SilentScreen())
    assert not server.bodies
