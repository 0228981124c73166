"""Variants of a task: always the same, all different, and refused where tokens cannot be cut."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.errors import PromptError
from taskfit.tasks import Label, Task, Template, load_task, render_prompt, task_from_columns
from taskfit.tasks.variants import (
    AS_GIVEN,
    NamedTask,
    encode_candidates,
    generate_variants,
    load_candidates,
    with_base,
    without_duplicates,
)

EXAMPLES = tiny.toy_examples(4)
BUILTIN = ("sentiment", "cola", "mnli")


def toy_task(num_demonstrations: int = 0) -> Task:
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    return replace(task, num_demonstrations=num_demonstrations)


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("num_demonstrations", [0, 2])
def test_variants_differ_in_name_and_in_what_the_model_reads(
    name: str, num_demonstrations: int
) -> None:
    task = replace(load_task(name), num_demonstrations=num_demonstrations)
    variants = generate_variants(task)
    assert variants[0] == NamedTask(AS_GIVEN, task)
    assert len({one.name for one in variants}) == len(variants) >= 20
    texts = dict.fromkeys(task.text, "Some text")
    shown = [replace(EXAMPLES[0], texts=texts, label=task.label_names[i]) for i in (0, 1)]
    read = {
        (
            render_prompt(one.task, texts, shown[:num_demonstrations]),
            tuple(label.words for label in one.task.labels),
        )
        for one in variants
    }
    assert len(read) == len(variants)
    assert generate_variants(task) == variants


@pytest.mark.parametrize("name", BUILTIN)
def test_variants_change_wording_only(name: str) -> None:
    task = load_task(name)
    for one in generate_variants(task):
        assert one.task.label_names == task.label_names
        assert replace(one.task, template=task.template, labels=task.labels) == task


def test_there_are_variants_of_every_kind() -> None:
    variants = [one.task for one in generate_variants(load_task("sentiment"))]
    words = {task.labels[0].words[0] for task in variants}
    assert {" negative", "negative", " Negative"} <= words
    lines = {task.template.line for task in variants}
    assert {"{text}\nLabel:{label}", " {text} -{label}", "{text}\n=>{label}"} <= lines
    assert any('"{text}"' in line for line in lines)
    assert any('"{label}"' in line for line in lines)
    assert any("?" in line for line in lines)
    assert any(not task.template.instruction for task in variants)
    assert any(task.template.line == "{text}\n{label}" for task in variants)
    assert len({task.template.separator for task in variants}) > 1


def test_quotes_that_are_there_are_taken_away_and_braces_stay() -> None:
    template = Template(instruction="", line="{{x}} Text: '{text}' is \"{label}\".")
    task = replace(toy_task(2), template=template)
    lines = {one.name: one.task.template.line for one in generate_variants(task)}
    assert lines["texts not quoted"] == '{{x}} Text: {text} is "{label}".'
    assert lines["words not quoted"] == "{{x}} Text: '{text}' is{label}."


def test_words_that_would_become_the_same_are_left_alone() -> None:
    labels = (Label("a", (" us",)), Label("b", (" US",)), Label("c", (" uS",)))
    for one in generate_variants(replace(toy_task(), labels=labels)):
        assert len({label.words for label in one.task.labels}) == 3


def test_without_demonstrations_or_instruction_a_separator_is_no_difference() -> None:
    task = toy_task()
    other = replace(task, template=replace(task.template, separator="###"))
    found = without_duplicates([NamedTask("one", task), NamedTask("two", other)])
    assert [one.name for one in found] == ["one"]
    shown = [NamedTask(n, replace(t, num_demonstrations=1)) for n, t in (("1", task), ("2", other))]
    assert len(without_duplicates(shown)) == 2


def test_what_the_tokenizer_refuses_is_listed_with_its_reason(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = toy_task()
    bare = tuple(Label(label.name, (label.words[0].strip(),)) for label in task.labels)
    spanned = replace(task, labels=bare, template=replace(task.template, line="{text} is {label}"))
    given = [NamedTask("spans", spanned), NamedTask("sound", task)]
    encoders, refused = encode_candidates(given, byte_level_tokenizer, [], max_length=64)
    assert list(encoders) == ["sound"]
    assert [one.name for one in refused] == ["spans"]
    assert "spans the end of the prompt" in refused[0].reason


def test_candidates_take_what_they_do_not_give_from_the_task(tmp_path: Path) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text(
        "- name: arrow\n  line: '{text} =>{label}'\n"
        "- label_words: {good: [' fine', ' nice']}\n  instruction: Judge.\n",
        encoding="utf-8",
    )
    base = toy_task()
    arrow, second = load_candidates(path, base=base)
    assert arrow == NamedTask(
        "arrow", replace(base, template=replace(base.template, line="{text} =>{label}"))
    )
    assert second.name == "candidate 2"
    assert second.task.labels == (base.labels[0], Label("good", (" fine", " nice")))
    assert second.task.template == replace(base.template, instruction="Judge.")


def test_all_problems_of_a_candidates_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text(
        "- {name: a, lines: '{text}{label}'}\n- {name: b, line: '{txt}:{label}'}\n- 7\n"
        "- {name: c, label_words: {good: {a: b}}}\n- {name: d, label_words: {fine: ' ok'}}\n"
        "- {name: e, instruction: x}\n- {name: e, instruction: x}\n- {name: f, instruction: x}\n",
        encoding="utf-8",
    )
    with pytest.raises(PromptError) as caught:
        load_candidates(path, base=toy_task())
    message = str(caught.value)
    for part in (
        "did you mean line?",
        "did you mean {text}?",
        "candidate 3 is '7'",
        "label_words.good",
        "'fine'",
        "two candidates are called 'e'",
        "'e' and 'f' write the same prompts",
    ):
        assert part in message


@pytest.mark.parametrize("text", ["", "a: 1", "[]", "- [unclosed"])
def test_a_file_without_candidates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=r"candidates\.yaml"):
        load_candidates(path, base=toy_task())


def test_the_task_as_given_is_always_among_the_candidates() -> None:
    task = toy_task(2)
    other = NamedTask("other", replace(task, template=replace(task.template, separator="#")))
    assert with_base([other], task) == ([NamedTask(AS_GIVEN, task), other], AS_GIVEN)
    mine = NamedTask("mine", task)
    assert with_base([other, mine], task) == ([other, mine], "mine")
    with pytest.raises(PromptError, match="Rename"):
        with_base([replace(other, name=AS_GIVEN)], task)
