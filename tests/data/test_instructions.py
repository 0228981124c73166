"""Instruction data in every form becomes the same three types; what is wrong is told with lines."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from taskfit.data.instructions import (
    Conversation,
    Preference,
    Raw,
    from_record,
    read_instructions,
    to_record,
)
from taskfit.errors import DataError

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello!"},
]


def turns(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_table_says_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    data = read_instructions(write(tmp_path / f"a{ending}", ALPACA))
    assert data.format.kind == "instruction"
    assert [turns(row) for row in data.rows] == [
        [("user", "Add.\n\n1 and 2"), ("assistant", "3")],
        [("user", "Say hello."), ("assistant", "Hello!")],
    ]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_chats_keep_their_turns_in_every_format_that_has_lists(tmp_path: Path, ending: str) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = read_instructions(write(tmp_path / f"a{ending}", [{"messages": chat}])).rows[0]
    assert turns(row) == [("user", "Hi"), ("assistant", "Hello")]


def test_a_chat_in_a_csv_is_a_json_text(tmp_path: Path) -> None:
    chat = json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}])
    row = read_instructions(write(tmp_path / "a.csv", [{"conversations": chat}])).rows[0]
    assert turns(row) == [("user", "Hi"), ("assistant", "Yo")]


def test_an_id_names_the_line_on_which_a_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '[\n {"instruction": "a",\n  "output": "b"},\n\n {"instruction": "c", "output": "d"}]'
    )
    assert [row.id for row in read_instructions(str(path)).rows] == ["a.json:2", "a.json:5"]
    # As `json.dump` writes it: all on one line.
    path.write_text(json.dumps([{"prompt": "?", "chosen": c, "rejected": "z"} for c in "abc"]))
    assert len({row.id for row in read_instructions(str(path)).rows}) == 3


def test_lines_of_objects_are_read_under_the_name_json_too_and_packed(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ALPACA).encode()))
    assert len(read_instructions(str(path)).rows) == 2


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p", "completion": "c"}, "completion"),
        ({"prompt": "p", "response": "c"}, "completion"),
        ({"question": "p", "answer": "c"}, "completion"),
        ({"instruction": "p", "response": "c", "context": ""}, "instruction"),
        ({"text": "t"}, "text"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference"),
        ({"instruction": "p", "output": "o", "chosen": "c", "rejected": "r"}, "preference"),
    ],
)
def test_the_kind_is_told_by_the_columns(tmp_path: Path, row: dict[str, str], kind: str) -> None:
    assert read_instructions(write(tmp_path / "a.jsonl", [row])).format.kind == kind


def test_kind_and_columns_override_what_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "note": "n"}])
    data = read_instructions(path, kind="text", columns={"text": "note"})
    assert data.rows == [Raw("a.jsonl:1", "n")]
    swapped = read_instructions(path, columns={"prompt": "note", "completion": "prompt"})
    assert turns(swapped.rows[0]) == [("user", "n"), ("assistant", "p")]


def test_a_pair_that_repeats_the_chat_has_the_shared_turns_as_prompt(tmp_path: Path) -> None:
    shared = [{"role": "user", "content": "Hi"}]
    row = {
        "chosen": [*shared, {"role": "assistant", "content": "good"}],
        "rejected": [*shared, {"role": "assistant", "content": "bad"}],
    }
    pair = read_instructions(write(tmp_path / "a.jsonl", [row])).rows[0]
    assert isinstance(pair, Preference)
    assert [m.content for m in pair.prompt] == ["Hi"]
    assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_instances_of_a_task_become_a_conversation_each(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1", "output": "1"}, {"output": "0"}]}
    rows = read_instructions(write(tmp_path / "a.jsonl", [row])).rows
    assert [row.id for row in rows] == ["a.jsonl:1.1", "a.jsonl:1.2"]
    assert turns(rows[1]) == [("user", "Add."), ("assistant", "0")]


def test_writing_a_row_and_reading_it_gives_the_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u\r\n "},
                {"role": "assistant", "content": "é\u2028日"},
            ]
        },
        {"prompt": [{"role": "user", "content": "u"}], "chosen": "c", "rejected": "r"},
        {"text": " t "},
    ]
    for number, row in enumerate(rows):
        first = read_instructions(write(tmp_path / f"{number}.jsonl", [row])).rows[0]
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(to_record(first), ensure_ascii=False) + "\n", encoding="utf-8")
        assert read_instructions(str(path)).rows[0] == first
        assert from_record(json.loads(path.read_text(encoding="utf-8"))) == first


def test_prompt_and_answer_split_at_the_last_answer(tmp_path: Path) -> None:
    chat = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    row = read_instructions(write(tmp_path / "a.jsonl", [{"messages": chat}])).rows[0]
    assert isinstance(row, Conversation)
    assert [m.content for m in row.prompt] == ["a", "b", "c"]
    assert row.answer == "d"


def test_prompts_alone_are_read_where_no_answer_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p"}])
    with pytest.raises(DataError, match="none of the kinds"):
        read_instructions(path)
    row = read_instructions(path, need_answer=False).rows[0]
    assert turns(row) == [("user", "p")]


def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "a\\ud83d b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 holds half of a surrogate pair"):
        read_instructions(str(path))
    nested = [{"role": "user", "content": "a\ud83d"}, {"role": "assistant", "content": "b"}]
    table = pd.DataFrame({"messages": [json.dumps(nested)]})
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"line 2: holds half of a surrogate pair"):
        read_instructions(str(tmp_path / "a.csv"))


def test_rows_that_lack_fields_are_one_error_with_their_lines_and_number(tmp_path: Path) -> None:
    rows = [ALPACA[0], *[{"instruction": "x"}] * 7, {"instruction": None, "output": "y"}]
    with pytest.raises(DataError) as caught:
        read_instructions(write(tmp_path / "a.jsonl", rows))
    message = str(caught.value)
    assert "8 of 9 rows" in message
    assert "line 2: output is missing" in message
    assert "line 7" not in message
    assert "3 more" in message


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": []}, "empty list"),
        ({"messages": [{"role": "user", "content": "x"}]}, "nothing to learn"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "narrator"),
        ({"messages": [{"role": "assistant"}]}, "has no content"),
        ({"messages": "no json"}, "no JSON list"),
        ({"messages": [{"content": "x"}]}, "has no role"),
        ({"instruction": ["x"], "output": "y"}, "instruction is a list"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "rejected is missing"),
        ({"chosen": "c", "rejected": "r"}, "prompt is missing"),
        ({"front": "c", "back": "r"}, "front, back"),
    ],
)
def test_each_thing_wrong_is_named(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        read_instructions(write(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", b"", "no row|starts with"),
        ("a.json", b'{"a": {"text": "x"},\n "b": 1}', "one array of objects"),
        ("a.json", b'[{"text": "x"},\n{"text": "y"', ":2"),
        ("a.json", b'[{"text": "x"}', "cut off"),
        ("a.json", b"[1]", "holds a int"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', ":2 is not JSON"),
        ("a.jsonl", b"[1]\n", "holds a list"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "is not utf-8"),
        ("a.csv", b"text\n\xe9\n", "--encoding"),
        ("a.parquet", b"PAR", "not a Parquet"),
        ("a.json.gz", b"no gzip", "starts with"),
        ("a.xlsx", b"x", "no Excel file"),
        ("a.jsonl", b"\n", "no row"),
    ],
)
def test_a_damaged_file_is_one_message(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=what):
        read_instructions(str(path))


def test_wrong_names_are_told_with_the_near_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "alpaca.jsonl", ALPACA)
    for call, what in (
        (lambda: read_instructions(path, kind="instructions"), "Did you mean instruction"),
        (lambda: read_instructions(path, columns={"outputs": "output"}), "Did you mean output"),
        (lambda: read_instructions(path, columns={"output": "ouput"}), "Did you mean output"),
        (lambda: read_instructions(str(tmp_path / "alpacca.jsonl")), "Did you mean alpaca.jsonl"),
        (lambda: read_instructions(str(tmp_path)), "is a folder"),
        (lambda: read_instructions(path, encoding="klingon"), "klingon"),
    ):
        with pytest.raises(DataError, match=what):
            call()


def test_the_instruction_sets_of_the_data_folder_are_read(shared_data: Path) -> None:
    kinds = {}
    for path in sorted((shared_data / "instructions").glob("*.json*")):
        data = read_instructions(str(path))
        kinds[path.name.split(".")[0]] = (data.format.kind, len(data.rows))
    assert kinds["alpaca_cleaned_first5k"] == ("instruction", 5000)
    assert kinds["dolly_hhrlhf_train_small"] == ("completion", 1000)
    assert kinds["self_instruct_seed_tasks"] == ("instruction", 175)
    pairs = read_instructions(str(shared_data / "preference" / "dpo_en_demo.json.gz"))
    assert (pairs.format.kind, len(pairs.rows)) == ("preference", 300)


def read_rows(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Any:
    return read_instructions(write(tmp_path / "a.jsonl", rows), **options)


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("flag", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 0.0}, False),
        ({"train_on_turn": False}, False),
        ({"training": True, "loss": False}, False),
        ({"weight": None}, True),
        ({}, True),
    ],
)
def test_a_turn_that_is_told_not_to_be_learned_is_not_and_stays_so_when_written(
    tmp_path: Path, flag: dict[str, Any], learned: bool
) -> None:
    messages = [USER, {"role": "assistant", "content": "a", **flag}, USER]
    data = read_rows(tmp_path, [{"messages": messages}])
    assert [m.learned for m in data.rows[0].messages] == [True, learned, True]
    assert data.notes == ()
    record = to_record(data.rows[0])
    assert ("weight" in record["messages"][1]) == (not learned)
    assert read_rows(tmp_path, [record]).rows == data.rows
    assert from_record(record) == data.rows[0]


def test_columns_and_keys_that_nothing_reads_are_told_with_their_counts(tmp_path: Path) -> None:
    chat = [USER, {"role": "assistant", "content": "a", "reasoning_content": "because", "id": "7"}]
    half = [USER, {"role": "assistant", "content": "a", "weight": 0.5, "loss": 1.25}]
    rows = [
        {"messages": chat, "tools": [{"name": "f"}], "rating": 3, "source": "x", "note": ""},
        {"messages": half, "tools": [], "rating": 0, "note": None, "weight": 2},
    ]
    (line,) = read_rows(tmp_path, rows).notes
    said = line.partition(": not read: ")[2].split(", ")
    assert line.startswith(str(tmp_path / "a.jsonl"))
    assert said[0] == "rating (2 rows)"
    assert sorted(said[1:]) == [
        "loss other than 0 and 1 (1 row)",
        "reasoning_content (1 row)",
        "tools (1 row)",
        "weight (1 row)",
        "weight other than 0 and 1 (1 row)",
    ]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    "calling",
    [
        CALL,
        {"role": "assistant", "content": "", "function_call": {"name": "f"}},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]},
        {"from": "function_call", "value": "{}"},
    ],
)
def test_conversations_with_tool_calls_are_left_out_and_counted(
    tmp_path: Path, calling: dict[str, Any]
) -> None:
    plain = {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}
    calls = {"messages": [USER, calling, {"role": "tool", "content": "1"}, plain["messages"][1]]}
    data = read_rows(tmp_path, [plain, calls, plain])
    assert [row.id for row in data.rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert data.notes[0].endswith("left out 1 row with tool calls, which are not learned")
    with pytest.raises(DataError, match=r"none of 1 rows is left to learn from.*1 row with tool"):
        read_rows(tmp_path, [calls])
    # Asked only, the turns before the last answer are a prompt.
    asked = read_rows(tmp_path, [calls], need_answer=False)
    assert [m.role for m in asked.rows[0].messages] == ["user", "assistant", "tool", "assistant"]
    assert "tool calls (1 row)" in asked.notes[0]


@pytest.mark.parametrize(
    ("yes", "no"), [(True, False), (1, 0), ("True", "False"), ("true", "false"), ("1", "0")]
)
def test_answers_that_a_label_calls_bad_are_not_learned(tmp_path: Path, yes: Any, no: Any) -> None:
    for name in ("label", "kto_tag"):
        rows = [{"prompt": "p", "completion": str(i), name: (yes, no)[i % 2]} for i in range(4)]
        data = read_rows(tmp_path, rows)
        assert [row.answer for row in data.rows] == ["0", "2"]
        assert f"left out 2 rows whose {name} is false" in data.notes[0]
        assert len(read_rows(tmp_path, rows, need_answer=False).rows) == 4


def test_a_label_that_is_no_yes_or_no_is_a_column_like_others(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": name} for name in ("happy", "sad")]
    data = read_rows(tmp_path, rows)
    assert len(data.rows) == 2
    assert data.notes[0].endswith("not read: label (2 rows)")


def test_rows_of_weight_0_are_left_out_and_other_weights_told(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "weight": w} for w in (0, 1, 0.5, None)]
    data = read_rows(tmp_path, rows)
    assert len(data.rows) == 3
    assert data.notes[0].endswith("left out 1 row of weight 0")
    assert data.notes[1].endswith("not read: weight (1 row)")


@pytest.mark.parametrize("as_text", [False, True])
def test_a_history_stands_before_the_question_as_earlier_turns(
    tmp_path: Path, as_text: bool
) -> None:
    for history in ([["a", "b"], ["c", "d"]], [{"role": "user", "content": "a"}], [], None, ""):
        shown = json.dumps(history) if as_text and history else history
        told = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        told = told[: {2: 4, 1: 1}.get(len(history or ()), 0)]
        for fields in ({"instruction": "q", "output": "o"}, {"prompt": "q", "completion": "o"}):
            row = read_rows(tmp_path, [{**fields, "system": "s", "history": shown}]).rows[0]
            assert turns(row) == [("system", "s"), *told, ("user", "q"), ("assistant", "o")]
    with pytest.raises(DataError, match="history must be a list of pairs"):
        read_rows(tmp_path, [{"instruction": "q", "output": "o", "history": [["a"]]}])


@pytest.mark.parametrize("context", ["Here.", ["Here.", "And there."]])
def test_a_context_belongs_to_the_question(tmp_path: Path, context: Any) -> None:
    said = "Where?\n\nHere." + ("\n\nAnd there." if isinstance(context, list) else "")
    for names in (("question", "answer"), ("instruction", "response")):
        row = dict(zip(names, ("Where?", "There"), strict=True))
        found = read_rows(tmp_path, [{**row, "context": context}])
        assert turns(found.rows[0]) == [("user", said), ("assistant", "There")]


def test_prompts_and_completions_may_be_chats(tmp_path: Path) -> None:
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": "a"}]}
    assert turns(read_rows(tmp_path, [row]).rows[0]) == [("user", "q"), ("assistant", "a")]
    listed = {"prompt": "p", "completion": '[{"price": 3}]'}
    assert read_rows(tmp_path, [listed]).rows[0].answer == '[{"price": 3}]'


def test_pairs_of_transcripts_have_what_they_share_as_prompt(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: so\n\nAssistant:"
    row = {"chosen": f"{start} good: yes\n\nyes", "rejected": f"{start} bad"}
    (pair,) = read_rows(tmp_path, [row]).rows
    assert [(m.role, m.content) for m in pair.prompt] == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "so"),
    ]
    assert (pair.chosen, pair.rejected) == ("good: yes\n\nyes", "bad")
    (other,) = read_rows(tmp_path, [{"prompt": start, "chosen": " good", "rejected": "bad"}]).rows
    assert other.prompt == pair.prompt
    apart = {**row, "rejected": "\n\nHuman: else\n\nAssistant: bad"}
    found = read_rows(tmp_path, [row, apart])
    assert len(found.rows) == 1
    assert "left out 1 row whose two texts are not one prompt" in found.notes[0]
    # With a prompt of its own, an answer may speak of people and assistants.
    quoted = {"prompt": "p", "chosen": "Human: a\n\nAssistant: b", "rejected": "r"}
    assert read_rows(tmp_path, [quoted]).rows[0].chosen == quoted["chosen"]
