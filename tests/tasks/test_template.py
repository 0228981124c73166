from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from taskfit.data import Example
from taskfit.errors import DataError, PromptError, SettingsError
from taskfit.settings import TaskSettings
from taskfit.tasks import (
    Template,
    choose_demonstrations,
    load_task,
    override_task,
    render_prompt,
    task_from_columns,
    task_from_dict,
    task_to_dict,
)

TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])


def test_the_published_cola_prompt_comes_out_to_the_byte() -> None:
    shown = [
        Example("1", {"sentence": "Dogs bark."}, "acceptable"),
        Example("2", {"sentence": "Bark the."}, "unacceptable"),
    ]
    assert render_prompt(load_task("cola"), {"sentence": "Who  came?"}, shown) == (
        " Examples of sentences that are grammatically ' acceptable' or ' unacceptable':\n"
        " Dogs bark. - acceptable\n"
        " Bark the. - unacceptable\n"
        " Who  came? -"
    )
    assert [label.words for label in load_task("cola").labels] == [
        (" unacceptable",),
        (" acceptable",),
    ]


@given(st.text(max_size=30))
def test_braces_in_a_users_text_mean_nothing(text: str) -> None:
    for given_text in (text, "{label} {text} {{" + text):
        assert render_prompt(TASK, {"text": given_text}, []) == f"Text: {given_text}\nLabel:"


def test_doubled_braces_are_braces_and_text_behind_the_label_shows_in_demonstrations() -> None:
    task = replace(TASK, template=Template("Look:", "{{{text}}} ->{label}!", " "))
    shown = [Example("1", {"text": "a"}, "good")]
    assert render_prompt(task, {"text": "b"}, shown) == "Look: {a} -> good! {b} ->"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Label:{label}", "names no text column; name at least one of {text}"),
        ("{txt}{label}", "names {txt}, which is no text column.*did you mean {text}"),
        ("{text}", "0 places for {label}"),
        ("{text}{label}{label}", "2 places for {label}"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(line: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        replace(TASK, template=Template("", line))


def test_all_problems_of_a_task_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("name: x\nversoin: 2\nlabels: [{word: a}]\ntemplate: {}\n")
    with pytest.raises(PromptError) as caught:
        load_task(str(path))
    for part in (
        "versoin",
        "did you mean version",
        "text is missing",
        "[1].name is missing",
        "line is missing",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["cola", "mnli", "hans", "sentiment"])
def test_built_in_tasks_survive_a_round_trip(name: str) -> None:
    task = load_task(name)
    assert task_from_dict(task_to_dict(task)) == task
    assert task.name == name


def test_an_unknown_task_suggests_one() -> None:
    with pytest.raises(PromptError, match="Did you mean sentiment"):
        load_task("sentimnet")


def test_overrides_replace_only_what_they_name() -> None:
    settings = TaskSettings(label_words={"good": [" fine", " nice"]}, separator=" | ")
    changed = override_task(TASK, settings, num_demonstrations=1)
    assert [label.words for label in changed.labels] == [(" bad",), (" fine", " nice")]
    assert changed.template == replace(TASK.template, separator=" | ")
    assert changed.num_demonstrations == 1
    with pytest.raises(SettingsError, match="'great'; the labels of task toy are bad, good"):
        override_task(TASK, TaskSettings(label_words={"great": " x"}), None)


def test_a_task_from_columns_reads_well() -> None:
    task = task_from_columns(
        name="x", text=["premise_text", "claim"], label_column="is_true", labels=["not_true", "t"]
    )
    prompt = render_prompt(task, {"premise_text": "A", "claim": "B"}, [])
    assert prompt == "Premise text: A\nClaim: B\nIs true:"
    assert task.labels[0].words == (" not true",)


def test_demonstrations_are_seeded_and_balanced_ones_as_even_as_they_can_be() -> None:
    examples = tiny.toy_examples(30)

    def pick(how: str, num: int, seed: int) -> list[Example]:
        return choose_demonstrations(examples, how=how, num=num, labels=["bad", "good"], seed=seed)

    assert pick("fixed", 3, 0) == examples[:3]
    assert pick("random", 8, 1) == pick("random", 8, 1) != pick("random", 8, 2)
    for num in range(1, 9):
        labels = [example.label for example in pick("balanced", num, 4)]
        assert abs(labels.count("good") - labels.count("bad")) <= 1
        assert len({e.id for e in pick("balanced", num, 4)}) == num
    with pytest.raises(DataError, match="31 demonstrations are asked for"):
        pick("random", 31, 0)


def test_balanced_demonstrations_go_on_when_a_class_runs_out() -> None:
    examples = [e for e in tiny.toy_examples(20) if e.label == "bad" or e.id == "toy:0"]
    chosen = choose_demonstrations(examples, how="balanced", num=5, labels=["bad", "good"], seed=0)
    assert sorted(str(e.label) for e in chosen) == ["bad"] * 4 + ["good"]
