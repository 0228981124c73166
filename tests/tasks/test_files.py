"""Task files: what is wrong is told at once, and what is written is read again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.errors import PromptError
from taskfit.tasks import Label, Task, Template, load_task, task_from_dict, task_to_dict

MINIMAL: dict[str, Any] = {
    "name": "mood",
    "text": "text",
    "labels": [{"name": "bad"}, {"name": "good"}],
    "template": {"line": "{text} Mood:{label}"},
}

# Also what YAML might take for something else: numbers, truth values, nothing, dates, comments.
# YAML takes \x85 and its like for line breaks, written as they are; nobody's words hold them.
letters = st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029")
words = st.text(letters, min_size=1, max_size=8).filter(str.strip) | (
    st.sampled_from(["yes", "no", "on", "null", "~", "1", "1.0", "1e3", "2020-01-01", " #", "- a"])
)
columns = st.text(
    st.characters(codec="utf-8", exclude_characters="{}\x85\u2028\u2029"), min_size=1, max_size=6
)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Any sound task."""
    text = draw(st.lists(columns.filter(lambda c: c != "label"), min_size=1, max_size=3))
    names = draw(st.lists(words, min_size=2, max_size=4, unique=True))
    pool = draw(st.lists(words, min_size=len(names), max_size=8, unique=True))
    owners = [*names, *(draw(st.sampled_from(names)) for _ in pool[len(names) :])]
    own = {name: tuple(w for w, o in zip(pool, owners, strict=True) if o == name) for name in names}
    values = draw(st.dictionaries(words.filter(lambda v: v not in names), st.sampled_from(names)))
    static = st.text(
        st.characters(codec="utf-8", exclude_characters="{}\x85\u2028\u2029"), max_size=5
    )
    line = "".join(f"{draw(static)}{{{column}}}" for column in text)
    return Task(
        name=draw(words),
        version=draw(st.integers(0, 99)),
        text=tuple(text),
        label_column=draw(columns),
        labels=tuple(Label(name, own[name]) for name in names),
        values=values,
        template=Template(draw(static), f"{line}{draw(static)}{{label}}", draw(static)),
        metric=draw(st.sampled_from(["accuracy", "mcc", "macro_f1"])),
        num_demonstrations=draw(st.integers(0, 9)),
        chat=draw(st.booleans()),
        multi_label=draw(st.booleans()),
    )


@given(task=tasks())
@settings(max_examples=50, deadline=None)
def test_any_task_comes_back_equal_also_through_yaml(task: Task) -> None:
    written = task_to_dict(task)
    assert task_from_dict(written) == task
    assert task_from_dict(yaml.safe_load(yaml.safe_dump(written))) == task
    readable = yaml.safe_dump(written, allow_unicode=True, sort_keys=False)
    assert task_from_dict(yaml.safe_load(readable)) == task


def test_a_minimal_file_has_the_documented_defaults() -> None:
    task = task_from_dict(MINIMAL)
    assert task.labels == (Label("bad", (" bad",)), Label("good", (" good",)))
    assert (task.text, task.label_column, task.values) == (("text",), "label", {})
    assert task.template == Template("", "{text} Mood:{label}", "\n")
    assert (task.version, task.metric, task.num_demonstrations) == (1, "accuracy", 0)
    assert (task.chat, task.multi_label) == (False, False)


def test_a_key_with_nothing_behind_it_is_a_key_that_is_not_there() -> None:
    empty = dict.fromkeys(
        ("version", "label", "metric", "num_demonstrations", "chat"),
    )
    template = {**MINIMAL["template"], "instruction": None, "separator": None}
    labels = [{"name": n, "words": None, "values": None} for n in ("bad", "good")]
    changed = {**MINIMAL, **empty, "template": template, "labels": labels}
    assert task_from_dict(changed) == task_from_dict(MINIMAL)


def test_numbers_are_names_and_a_single_word_needs_no_list() -> None:
    labels = [{"name": 0, "words": " no", "values": 10}, {"name": 1, "words": [" yes", 2.5]}]
    task = task_from_dict({**MINIMAL, "labels": labels})
    assert task.labels == (Label("0", (" no",)), Label("1", (" yes", "2.5")))
    assert task.values == {"10": "0"}


def test_every_wrong_key_and_value_is_told_at_once_with_suggestions() -> None:
    with pytest.raises(PromptError) as caught:
        task_from_dict(
            {
                "nmae": "x",
                "versoin": 1,
                "version": "two",
                "text": [["nested"]],
                "labels": [{"name": "a", "word": " a"}, {"words": " b"}, "c"],
                "template": {"line": "{text}{label}", "seperator": " "},
                "metric": {},
                "num_demonstrations": 1.5,
                "chat": "maybe",
            }
        )
    message = str(caught.value)
    for part in (
        "unknown key nmae, did you mean name?",
        "unknown key versoin, did you mean version?",
        "unknown key labels[1].word, did you mean words?",
        "unknown key template.seperator, did you mean separator?",
        "allowed: name, words, values",
        "name is missing",
        "text[1] is ['nested']; it needs text",
        "labels[2].name is missing",
        "labels[3] is 'c'; it needs keys: name, words, values",
        "metric is {}; it needs text",
        "version is 'two'; it needs a whole number",
        "num_demonstrations is 1.5; it needs a whole number",
        "chat is 'maybe'; allowed are true and false",
    ):
        assert part in message
    assert message.count("version is") == 1


@pytest.mark.parametrize("missing", ["name", "text", "labels", "template"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(PromptError, match=f"{missing} is missing"):
        task_from_dict({key: value for key, value in MINIMAL.items() if key != missing})
    with pytest.raises(PromptError, match=f"{missing} is missing"):
        task_from_dict({**MINIMAL, missing: None})


@pytest.mark.parametrize("key", ["version", "num_demonstrations"])
def test_a_truth_value_is_no_number(key: str) -> None:
    with pytest.raises(PromptError, match=f"{key} is True; it needs a whole number"):
        task_from_dict({**MINIMAL, key: True})


@pytest.mark.parametrize("quote", ["'", ""], ids=["in quotes", "without"])
def test_yes_no_on_and_off_are_words(tmp_path: Path, quote: str) -> None:
    path = tmp_path / "task.yaml"
    words = {word: f"{quote}{word}{quote}" for word in ("on", "no", "yes", "off")}
    path.write_text(
        "name: {on}\ntext: [{no}]\nlabels: [{{name: {yes}, words: {no}}}, {{name: {off}}}]\n"
        "template: {{line: '{{no}}:{{label}}'}}\n".format(**words)
    )
    task = load_task(str(path))
    assert task.labels == (Label("yes", ("no",)), Label("off", (" off",)))
    assert (task.name, task.text) == ("on", ("no",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "a, b"}, "labels is 'a, b'; it needs a list"),
        ({"labels": []}, "0 labels; a classifier needs at least two"),
        ({"labels": [{"name": "a"}]}, "1 labels; a classifier needs at least two"),
        ({"labels": [{"name": "a"}, {"name": "a"}]}, "label 'a' stands 2 times"),
        ({"labels": [{"name": "a", "words": []}, {"name": "b"}]}, "label 'a' has no word"),
        ({"labels": [{"name": "a", "words": "  "}, {"name": "b"}]}, "'a' has an empty word '  '"),
        (
            {"labels": [{"name": "a", "values": "0"}, {"name": "b", "values": [0]}]},
            "value '0' stands for 'a' and for 'b'",
        ),
        (
            {"labels": [{"name": "a", "values": "b"}, {"name": "b"}]},
            "value 'b' of label 'a' is the name of another label",
        ),
        ({"template": "{text}{label}"}, "it needs keys: instruction, line, separator"),
        ({"template": {"line": None}}, "template.line is missing"),
        ({"template": {"line": "{text}{label}", "instruction": ["x"]}}, "template.instruction is"),
        ({"metric": "f1"}, "metric 'f1'; allowed are accuracy, mcc, macro_f1"),
        ({"num_demonstrations": -1}, "num_demonstrations is -1; 0 is the least"),
    ],
)
def test_what_is_no_task_says_what_was_found(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        task_from_dict({**MINIMAL, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no settings; it needs: name, version, text"),
        (b"- a\n- b\n", "holds no settings"),
        (b"name: [", "is not YAML"),
        (b"name: \xff\n", r"is not UTF-8 \(byte 6\)"),
        (b"name: !!python/object:os.system x\n", "is not YAML"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_task(str(path))
    assert str(path) in str(caught.value)


def test_a_built_in_name_is_no_file_and_an_absent_one_lists_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cola").write_text(yaml.safe_dump(MINIMAL))
    assert load_task("cola").name == "cola"
    assert load_task("./cola").name == "mood"
    for absent in ("nothing.yaml", str(tmp_path)):
        with pytest.raises(PromptError, match=r"neither a file nor one of .*cola, .*sentiment"):
            load_task(absent)


def test_a_task_saved_by_hand_and_changed_differs_where_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    task = load_task("mnli")
    path.write_text(yaml.safe_dump({**task_to_dict(task), "num_demonstrations": 0}))
    assert load_task(str(path)) == replace(task, num_demonstrations=0)
