"""Files of questions: the same text first, ordinary tasks behind, every problem told at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks import PromptEncoder, render_prompt
from taskfit.tasks.question_files import (
    is_questionnaire,
    load_questionnaire,
    questionnaire_from_dict,
    questionnaire_to_dict,
)
from taskfit.tasks.questions import Option, Question, Questionnaire, with_options

TEXT = """
name: reviews
version: 3
text: [title, body]
instruction: "Read {carefully}."
metric: macro_f1
questions:
  - name: mood
    ask: "Is {it} good?"
    kind: choice
    label: sentiment
    weight: 0.5
    options:
      - {name: positive, words: [" good", " great"], description: "all {well}", values: ["+"]}
      - {name: very_bad}
  - {name: buy, ask: "Would they buy?", kind: yes_no}
  - {name: stars, ask: "How many?", kind: score, options: [1, 2, {name: most, number: 7}]}
"""
TEXTS = {"title": "A {title}", "body": "It sang."}


def questions(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(TEXT), **changes}


def with_question(**entry: Any) -> dict[str, Any]:
    return questions(questions=[entry])


def message_of(data: dict[str, Any]) -> str:
    with pytest.raises(PromptError) as caught:
        questionnaire_from_dict(data)
    return str(caught.value)


def test_a_file_of_questions_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text(TEXT)
    assert is_questionnaire(str(path))
    found = load_questionnaire(str(path))
    assert found.names == ["mood", "buy", "stars"]
    mood, buy, stars = found.questions
    assert mood.label_column == "sentiment"
    assert (buy.label_column, stars.label_column) == ("buy", "stars")
    assert mood.values == {"+": "positive"}
    assert mood.options[1] == Option("very_bad", (" very bad",))
    assert buy.option_names == ["yes", "no"]
    assert buy.values["True"] == "yes"
    assert stars.levels == [1.0, 2.0, 7.0]
    assert (mood.weight, buy.weight) == (0.5, 1.0)


def test_the_dictionary_of_questions_gives_the_same_questions_again() -> None:
    found = questionnaire_from_dict(questions())
    again = questionnaire_from_dict(yaml.safe_load(yaml.safe_dump(questionnaire_to_dict(found))))
    assert again == found


def test_all_prompts_start_with_instruction_and_texts_and_end_where_the_answer_stands() -> None:
    found = questionnaire_from_dict(questions())
    prompts = {name: render_prompt(task, TEXTS, []) for name, task in found.tasks.items()}
    shared = "Read {carefully}.\n\nTitle: A {title}\nBody: It sang.\nQuestion: "
    assert prompts["mood"] == (
        shared + "Is {it} good?\nOptions:\n- good: all {well}\n- very bad\nAnswer:"
    )
    assert prompts["buy"] == shared + "Would they buy?\nOptions: yes, no\nAnswer:"
    assert prompts["stars"] == shared + "How many?\nOptions: 1, 2, most\nAnswer:"


@pytest.mark.parametrize("chat", [False, True])
def test_every_question_is_an_ordinary_task_for_the_encoder(
    chat_tokenizer: PreTrainedTokenizerFast, chat: bool
) -> None:
    found = replace(questionnaire_from_dict(questions()), chat=chat)
    example = Example("x", TEXTS, answers={"mood": "very_bad", "stars": "most"})
    gold = {}
    for name, task in found.tasks.items():
        encoder = PromptEncoder(chat_tokenizer, task, [], max_length=512)
        item = encoder.encode([example.of(name)])[0]
        words = [encoder.text.ids(c.word) for c in encoder.candidates]
        assert [ids.tolist() for ids in item.completions] == words
        gold[name] = item.label_index
    assert gold == {"mood": 1, "buy": None, "stars": 2}
    assert example.bare() == Example("x", TEXTS)


def test_everything_wrong_with_the_form_is_told_at_once() -> None:
    message = message_of(
        yaml.safe_load(
            "name: x\nverson: 2\nquestions:\n"
            "  - {name: true, knd: choice, kind: choise, options: [false, {name: a, wrds: b}]}\n"
        )
    )
    for part in (
        "text is missing",
        "unknown key verson, did you mean version?",
        "questions[1].name is True; it needs text",
        "questions[1].ask is missing",
        "unknown key questions[1].knd, did you mean kind?",
        "questions[1].kind is 'choise'",
        "questions[1].options[1].name is False; it needs text",
        "unknown key questions[1].options[2].wrds, did you mean words?",
    ):
        assert part in message


def test_everything_wrong_with_the_meaning_is_told_at_once() -> None:
    message = message_of(
        questions(
            text=["title", "{body}"],
            metric="bleu",
            questions=[
                {"name": "a/b", "ask": " ", "kind": "choice", "options": ["one"], "weight": 0},
                {"name": "q", "ask": "?", "kind": "score", "options": ["x", 3, 2]},
                {"name": "q", "ask": "?", "kind": "yes_no", "label": "title"},
                {"name": "r", "ask": "?", "kind": "yes_no", "options": ["maybe", "no"]},
                {
                    "name": "s",
                    "ask": "?",
                    "kind": "choice",
                    "options": [
                        {"name": "a", "words": " w", "values": ["1"]},
                        {"name": "b", "words": [" w", " "], "values": ["1"]},
                    ],
                },
            ],
        )
    )
    for part in (
        "a text column cannot be called '{body}'",
        "metric 'bleu'",
        "question 'a/b': its name may have letters",
        "question 'a/b': ask is empty",
        "question 'a/b': weight is 0.0; it must be above 0",
        "question 'a/b': 1 labels; a classifier needs at least two",
        "level 'x' has no number",
        "levels stand in ascending order, each number once, not as 3, 2",
        "2 questions are called 'q'",
        "its label column 'title' is a text column too",
        "the options of yes_no are 'yes' and 'no'",
        "value '1' stands for 'a' and for 'b'",
        "word ' w' stands for 'a' and for 'b'",
        "has an empty word ' '",
    ):
        assert part in message, part


@pytest.mark.parametrize("count", [1, 11])
def test_a_score_has_two_to_ten_levels(count: int) -> None:
    entry = {"name": "s", "ask": "?", "kind": "score"}
    assert f"{count} levels; a score has 2 to 10" in message_of(
        with_question(**entry, options=list(range(count)))
    )
    for fine in (2, 10):
        questionnaire_from_dict(with_question(**entry, options=list(range(fine))))


def test_columns_of_predictions_that_would_be_called_the_same_are_refused() -> None:
    message = message_of(
        questions(
            questions=[
                {"name": "a", "ask": "?", "kind": "choice", "options": ["b_c", "d"]},
                {"name": "a_b", "ask": "?", "kind": "choice", "options": ["c", "e"]},
            ]
        )
    )
    assert "2 columns of the predictions would be called 'p_a_b_c'" in message


def test_files_that_are_no_questions_are_told_apart(tmp_path: Path) -> None:
    task, broken = tmp_path / "task.yaml", tmp_path / "broken.yaml"
    task.write_text("name: toy\nlabels: []\n")
    broken.write_text("questions: [")
    assert not is_questionnaire(str(task))
    assert not is_questionnaire(str(broken))
    assert not is_questionnaire(None)
    assert not is_questionnaire("sentiment")
    with pytest.raises(PromptError, match="is not YAML"):
        load_questionnaire(str(broken))
    with pytest.raises(PromptError, match=r"no file of questions .*nowhere"):
        load_questionnaire("nowhere.yaml")
    task.write_text("- a list")
    with pytest.raises(PromptError, match="holds no questions"):
        load_questionnaire(str(task))


def question(name: str) -> Question:
    found = questionnaire_from_dict(questions())
    return next(q for q in found.questions if q.name == name)


def test_new_options_replace_the_old_and_keep_what_is_known_of_them() -> None:
    mood = question("mood")
    changed = with_options(mood, ["awful-ish", " positive "])
    assert changed.options == (Option("awful-ish", (" awful ish",)), mood.options[0])
    assert (changed.ask, changed.name, changed.kind) == (mood.ask, mood.name, mood.kind)
    stars = with_options(question("stars"), ["0", "2", "3.5"])
    assert stars.levels == [0.0, 2.0, 3.5]
    whole = questionnaire_from_dict(questions()).with_options({"mood": ["x", "y", "z"]})
    assert whole.tasks["mood"].label_names == ["x", "y", "z"]
    assert whole.tasks["buy"] == questionnaire_from_dict(questions()).tasks["buy"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"moood": ["a", "b"]}, "no question 'moood'; the questions are mood, buy, stars. Did you"),
        ({"buy": ["a", "b"]}, "answered by yes or no"),
        ({"stars": ["1", "many"]}, "'many' is none"),
        ({"stars": ["2", "1"]}, "ascending order"),
        ({"mood": ["a"]}, "1 labels"),
        ({"mood": ["a", "a"]}, "stands 2 times in labels"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, list[str]], part: str) -> None:
    found: Questionnaire = questionnaire_from_dict(questions())
    with pytest.raises(PromptError) as caught:
        found.with_options(options)
    assert part in str(caught.value)


def test_prompts_of_all_questions_share_their_tokens_up_to_the_question(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = questionnaire_from_dict(questions())
    texts = {"title": "The dog", "body": tiny.toy_examples(1)[0].texts["text"]}
    prompts = [
        PromptEncoder(byte_level_tokenizer, task, [], max_length=512)
        .encode([Example("x", texts)])[0]
        .prompt_ids
        for task in found.tasks.values()
    ]
    shared = len(byte_level_tokenizer.encode("Read {carefully}.\n\nTitle: The dog\nBody: "))
    for other in prompts[1:]:
        np.testing.assert_array_equal(other[:shared], prompts[0][:shared])
