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
