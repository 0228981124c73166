"""Texts stay what was typed or written: on the command line, and in every kind of YAML file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.compare.grid import load_grid
from taskfit.curate.settings import load_curate_settings
from taskfit.errors import SettingsError
from taskfit.overrides import nested_setting
from taskfit.settings_file import dump_settings, load_settings
from taskfit.tasks.files import load_task, task_from_dict
from taskfit.tasks.question_files import load_questionnaire
from taskfit.tasks.variants import load_candidates
from taskfit.yaml_text import parse_yaml

# Without quotes, YAML takes these for numbers, times, dates, truth values or nothing.
WORDS: tuple[str, ...] = (
    "010",
    "12:30",
    "yes",
    "No",
    "true",
    "null",
    "~",
    "2024-01-02",
    "1e3",
    "0x1F",
    "1_0",
    ".5",
)
WORDS = (*WORDS, ".nan", "=", "-3", "9" * 500)

PLAIN = {
    "name": "mood",
    "text": "text",
    "labels": [{"name": "good"}, {"name": "bad"}],
    "template": {"line": "{text}{label}"},
}


@settings(deadline=None)
@given(st.text().filter(lambda text: "\\" not in text and text[:1] not in ("'", '"')))
def test_a_part_of_a_prompt_is_what_was_typed(text: str) -> None:
    found = load_settings(overrides=[f"task.instruction={text}", f"task.label_words.a={text}"])
    assert found.task.instruction == (None if text == "null" else text)
    assert found.task.label_words == {"a": text}


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.data())
def test_settings_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.yaml"
    setting = data.draw(st.sampled_from(["task.line", "data.label", "task.label_words.a"]))
    found = load_settings(flags=nested_setting(setting, text))
    dump_settings(found, path)
    assert load_settings(path) == found


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r" Review {text}\nVerdict:{label}", " Review {text}\nVerdict:{label}"),
        (r"a\tb", "a\tb"),
        (r"the characters \\n", r"the characters \n"),
        (r"C:\d \\ \x", r"C:\d \\ \x"),
        ('" fine"', " fine"),
        ("' it''s'", " it's"),
        ('"{text}" is', '"{text}" is'),
        ('"a" or "b"', '"a" or "b"'),
        ("", ""),
        ("[a, b]", "[a, b]"),
        ("Task: say # what", "Task: say # what"),
        ("null", None),
    ],
)
def test_line_breaks_quotes_and_nothing_as_typed(typed: str, meant: str | None) -> None:
    assert load_settings(overrides=[f"task.instruction={typed}"]).task.instruction == meant


def test_what_is_no_part_of_a_prompt_keeps_its_backslashes_and_needs_a_value() -> None:
    found = load_settings(overrides=[r"data.train=C:\new\table.csv", "data.label= my label"])
    assert (found.data.train, found.data.label) == (r"C:\new\table.csv", " my label")
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=["data.label=", "model.name=", "data.label_separator="])
    lines = str(caught.value).splitlines()
    assert "--set data.label=: there is no value behind the =" in lines[0]
    assert "--set model.name=: " in lines[1]
    assert "data.label_separator is ''" in lines[2]


@pytest.mark.parametrize("separator", ["|", "#", ">", "&", "*", "- ", ": ", ", ", "!", "%", "@"])
def test_a_separator_is_any_text(separator: str) -> None:
    found = load_settings(overrides=[f"data.label_separator={separator}"])
    assert found.data.label_separator == separator


def test_labels_and_their_words_may_have_dots_and_brackets() -> None:
    found = load_settings(
        overrides=[
            "task.label_words.v1.2= one",
            "task.label_words.[low]=[urgent]",
            "task.label_words.b=[' poor', weak, 010]",
            "data.text=[010, 12:30, null]",
            "method.prompt=false",
            "training.max_steps=010",
        ]
    )
    assert found.task.label_words == {
        "v1.2": " one",
        "[low]": "[urgent]",
        "b": [" poor", "weak", "010"],
    }
    assert found.data.text == ["010", "12:30", "null"]
    assert found.training.max_steps == 10


def test_every_kind_of_file_keeps_words_where_texts_belong(tmp_path: Path) -> None:
    path, words = tmp_path / "file.yaml", ", ".join(WORDS)
    pairs = ", ".join(f"{word}: {word}" for word in WORDS)

    path.write_text(f"data: {{text: [{words}], soft_labels: {{{pairs}}}}}\ntask: {{label_words: "
                    f"{{{pairs}}}}}\nsearch: {{space: {{task.separator: [{words}], template: "
                    f"{{choices: [{words}]}}, training.epochs: [1e-1, 010]}}}}\n")  # fmt: skip
    found = load_settings(path)
    assert found.data.text == [*WORDS]
    assert found.data.soft_labels == found.task.label_words == {word: word for word in WORDS}
    space = {**found.search.space}
    assert space.pop("training.epochs") == [0.1, 10]
    assert space.pop("template") == {"choices": [*WORDS]}
    assert space == {"task.separator": [None if w in ("null", "~") else w for w in WORDS]}

    path.write_text(
        f"methods: {{yes: {{task: {{label_words: {{{pairs}}}}}}}, no: null}}\n"
        f"sizes: {{10: {{data: {{text: [{words}]}}}}}}\nmodels: [{words}]\n"
    )
    grid = load_grid(path)
    assert grid["methods"]["yes"]["task"]["label_words"] == {word: word for word in WORDS}
    assert grid["methods"]["no"] is None
    assert grid["sizes"][10]["data"]["text"] == grid["models"] == [*WORDS]

    labels = ", ".join(f"{{name: {word}, words: [{word}], values: [{word}-]}}" for word in WORDS)
    path.write_text(f"name: 010\ntext: [{words}]\nlabel: 12:30\nlabels: [{labels}]\n"
                    "template: {line: '{010}{label}'}\n")  # fmt: skip
    task = load_task(str(path))
    assert [label.name for label in task.labels] == [*WORDS]
    assert [label.words for label in task.labels] == [(word,) for word in WORDS]
    assert (task.name, task.text, task.label_column) == ("010", WORDS, "12:30")

    path.write_text(f"name: q\ntext: 010\nquestions:\n- {{name: no, ask: 12:30, kind: choice, "
                    f"options: [{words}]}}\n")  # fmt: skip
    (question,) = load_questionnaire(str(path)).questions
    assert (question.name, question.ask, question.option_names) == ("no", "12:30", [*WORDS])

    path.write_text("- {name: 010, label_words: {good: 12:30, bad: [yes, null]}}\n")
    (one, *_) = load_candidates(path, task_from_dict(PLAIN))
    assert one.name == "010"
    assert {label.name: label.words for label in one.task.labels} == {
        "good": ("12:30",),
        "bad": ("yes", "null"),
    }

    path.write_text("steps:\n- exact\n- {step: language, keep: [no, yes]}\n"
                    "sources:\n- {file: 010, columns: {prompt: 12:30}}\n")  # fmt: skip
    curated = load_curate_settings(path)
    assert curated.steps[1].model_dump()["keep"] == ["no", "yes"]
    assert curated.sources[0].columns == {"prompt": "12:30"}


def test_words_mean_what_yaml_says_where_no_text_belongs() -> None:
    found = parse_yaml("[010, 0x10, 0o10, 1e3, .5, true, null, ~, yes, 12:30, 2024-01-02, -.inf]")
    assert found == [10, 16, 8, 1000.0, 0.5, True, None, None, "yes", "12:30", "2024-01-02",
                     float("-inf")]  # fmt: skip
    assert parse_yaml("{a: '010', b: !!int 3, c: }") == {"a": "010", "b": 3, "c": None}


def test_a_key_that_stands_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\ntraining: {epochs: 2}\nseed: 2\n")
    with pytest.raises(SettingsError, match=r"'seed' stands twice(.|\n)*line 1(.|\n)*line 3"):
        load_settings(path)


def test_settings_from_python_keep_emoji_places_and_labels_that_are_numbers() -> None:
    given: dict[str, object] = nested_setting("task.label_words", {1: " one", 2: (" two", " 2")})
    found = load_settings(flags=given)
    assert found.task.label_words == {"1": " one", "2": [" two", " 2"]}
    assert load_settings(flags=nested_setting("task.separator", "🙂")).task.separator == "🙂"
    assert load_settings(flags=nested_setting("data.train", Path("a"))).data.train == "a"
