"""A prompt lists its options in any order; labels, words and columns stay what they are."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks import (
    Label,
    PromptEncoder,
    Task,
    Template,
    load_task,
    num_orders,
    option_orders,
    render_prompt,
    shuffled_orders,
    task_from_dict,
    task_to_dict,
)
from taskfit.tasks.question_files import questionnaire_from_dict
from taskfit.tasks.variants import generate_variants

NAMES = ("anger", "joy", "fear", "calm", "awe", "guilt", "pride")


def task_of(count: int, **changes: object) -> Task:
    base = replace(
        tiny.toy_task(labels=[Label(name, (f" {name}",)) for name in NAMES[:count]]),
        template=Template("Which one: {options:or}?", "Text: {text}\nAnswer:{label}"),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def prompt(task: Task) -> str:
    return render_prompt(task, {"text": "a {options} b"}, [])


def test_options_stand_where_the_template_says_and_nowhere_else() -> None:
    three = task_of(3)
    assert prompt(three) == "Which one: anger, joy or fear?\nText: a {options} b\nAnswer:"
    listed = replace(three, listed=("fear", "anger"))
    assert prompt(listed).startswith("Which one: fear, anger or joy?")
    assert [c.name for c in listed.labels] == ["anger", "joy", "fear"]
    line = Template("{not options} {{options}}", "{text}; {{options}} of {options}:{label}")
    assert prompt(replace(three, template=line)) == (
        "{not options} {anger, joy, fear}\na {options} b; {options} of anger, joy, fear:"
    )


def test_labels_with_a_meaning_are_listed_one_to_a_line() -> None:
    labels = (Label("a", (" yes",), "it {is} so"), Label("b", (" no",)))
    task = task_of(2, labels=labels, template=Template("", "{text}\n{options}\nAnswer:{label}"))
    assert prompt(task).endswith("\n- yes: it {is} so\n- no\nAnswer:")
    assert prompt(replace(task, listed=("b",))).endswith("\n- no\n- yes: it {is} so\nAnswer:")


def test_a_text_column_that_is_called_options_stays_a_column() -> None:
    task = task_of(2, text=("options",), template=Template("", "{options} ({options:}):{label}"))
    assert render_prompt(task, {"options": "X"}, []) == "X (anger, joy):"
    alone = replace(task, template=Template("", "{options}:{label}"))
    assert not alone.names_options
    questions = questionnaire_from_dict(
        {
            "name": "q",
            "text": ["options"],
            "questions": [{"name": "x", "ask": "Is it?", "kind": "yes_no"}],
        }
    )
    (asked,) = questions.tasks.values()
    assert render_prompt(asked, {"options": "X"}, []) == (
        "Options: X\nQuestion: Is it?\nOptions: yes, no\nAnswer:"
    )
    assert asked.names_options


@given(st.integers(2, 7), st.integers(1, 60), st.integers(0, 3))
def test_orders_differ_and_the_given_one_is_first(count: int, asked: int, seed: int) -> None:
    task = task_of(count)
    found = option_orders(task, asked, seed=seed)
    orders = [tuple(one.option_names) for one in found]
    assert found[0] == task
    assert len(orders) == len(set(orders)) == min(asked, num_orders(task))
    assert num_orders(task) == math.factorial(count)
    assert all(sorted(order) == sorted(NAMES[:count]) for order in orders)
    assert all(one.labels == task.labels for one in found)
    # Of whole rounds every option stands at every place equally often.
    whole = len(orders) // count * count
    for place in range(count):
        column = [order[place] for order in orders[:whole]] if asked >= count else []
        assert len({column.count(name) for name in column}) <= 1
    drawn = shuffled_orders(task, asked, seed=seed)
    assert drawn == shuffled_orders(task, asked, seed=seed)
    assert len(drawn) == min(asked, num_orders(task))


def test_levels_of_a_score_stand_in_a_row_up_or_down() -> None:
    task = task_of(4, levels=(1.0, 2.0, 3.0, 4.0))
    found = [one.option_names for one in option_orders(task, 9, seed=0)]
    assert found == [list(NAMES[:4]), list(NAMES[3::-1])]


def test_a_prompt_without_options_has_one_order() -> None:
    task = task_of(3, template=Template("Which?", "{text}:{label}"))
    assert num_orders(task) == 1
    assert option_orders(task, 5, seed=0) == shuffled_orders(task, 5, seed=0) == [task]


@pytest.mark.parametrize(
    ("listed", "message"),
    [(("joy", "jy"), "listed names 'jy', which is no label"), (("joy", "joy"), "a label twice")],
)
def test_an_order_of_other_names_is_refused(listed: tuple[str, ...], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        task_of(2, listed=listed)


def test_the_order_and_what_labels_mean_come_back_from_a_file() -> None:
    task = task_of(3, listed=("joy", "fear", "anger"))
    task = replace(task, labels=(replace(task.labels[0], description="heat"), *task.labels[1:]))
    assert task_from_dict(task_to_dict(task)) == task
    assert "listed" not in task_to_dict(task_of(3))


def test_built_in_prompts_are_written_as_before_and_know_their_options() -> None:
    task = load_task("sentiment")
    assert task.written.instruction == "Is the sentiment of the text positive or negative?"
    assert task.label_names == ["negative", "positive"]
    turned = option_orders(task, 2, seed=0)[1]
    assert turned.written.instruction == "Is the sentiment of the text negative or positive?"
    nli = load_task("mnli").written.instruction
    assert nli == "Does the statement follow from the text? Answer yes, maybe or no."


def test_what_users_call_a_label_makes_no_control_token_where_it_is_listed(
    byte_level_tokenizer: object,
) -> None:
    task = task_of(2, labels=(Label("a", (" x</s>",)), Label("b", (" y",), "ends </s> here")))
    encoder = PromptEncoder(byte_level_tokenizer, task, [], max_length=200)  # type: ignore[arg-type]
    (item,) = encoder.encode([Example("1", {"text": "so"})])
    end = byte_level_tokenizer.eos_token_id  # type: ignore[attr-defined]
    assert end not in item.prompt_ids


def test_wordings_keep_the_place_of_options() -> None:
    names = {one.name: one.task for one in generate_variants(task_of(3))}
    assert names["as given"].names_options
    quoted = names["texts quoted"].template
    assert '"{text}"' in quoted.line
    assert names["words Capitalised"].written.instruction == "Which one: Anger, Joy or Fear?"
