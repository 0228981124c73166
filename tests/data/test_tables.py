from pathlib import Path

import pandas as pd
import pytest

from taskfit.data import (
    Columns,
    check_labels,
    check_several_classes,
    guess_columns,
    guess_note,
    label_names,
    notes_of,
    read_table,
    to_examples,
)
from taskfit.data.records import iter_records
from taskfit.errors import DataError

COLUMNS = Columns(("text",), "label")


def csv_file(folder: Path, content: str | bytes, name: str = "train.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(source: str) -> list[tuple[str, str, str | None]]:
    examples = to_examples(read_table(source), COLUMNS, source="f")
    return [(e.id, e.texts["text"], e.label) for e in examples]


def test_lines_are_true_also_behind_quoted_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    source = csv_file(tmp_path, 'text,label\n"two\nlines",a\n\n"x, y",b\n')
    assert read(source) == [("f:2", "two\nlines", "a"), ("f:5", "x, y", "b")]


def test_byte_order_marks_and_windows_line_ends_are_no_content(tmp_path: Path) -> None:
    source = csv_file(tmp_path, b"\xef\xbb\xbftext,label\r\nhi,a\r\nho,b\r\n")
    assert read(source) == [("f:2", "hi", "a"), ("f:3", "ho", "b")]


def test_no_text_is_taken_for_a_missing_value(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\nNA,null\nnan,1.0\n")
    assert read(source) == [("f:2", "NA", "null"), ("f:3", "nan", "1.0")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"text": ["a b", "é 日"], "label": ["x", "y"]})
    path = tmp_path / f"data{suffix}"
    if ".parquet" in suffix:
        table.to_parquet(path)
    elif ".jsonl" in suffix:
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in suffix else ",")
    assert [(t, label) for _, t, label in read(str(path))] == [("a b", "x"), ("é 日", "y")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_what_separates_columns_is_seen_and_told_whatever_the_name_says(
    tmp_path: Path, name: str, delimiter: str
) -> None:
    rows = pd.DataFrame({"text": ["a, b; c", 'd "e"\tf|', "1,5"], "label": ["x", "y", "x"]})
    rows.to_csv(tmp_path / name, sep=delimiter, index=False)
    table = read_table(str(tmp_path / name))
    assert table.reset_index(drop=True).equals(rows.astype("str"))
    usual = delimiter == ("," if name.endswith("csv") else "\t")
    assert any("separated by" in note for note in notes_of(table)) is not usual


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text,label\n", "no row below its header"),
        ("text;label\na;b\nc\n", r"train\.csv:3 has 1 fields, its header 2"),
        ("text,label\na,b,c\n", r"train\.csv:2 has 3 fields, its header 2"),
        ('text,label\na,b\n"c,d\n', "not proper CSV"),
        ("text,text\na,b\n", "several columns named text"),
        (b"text,label\ncaf\xe9,a\n", r"train\.csv:2 is not utf-8.*data\.encoding=cp1252"),
        ("sentence,label\na,b\n", "no column 'text'; it has: sentence, label"),
        ("Text,label\na,b\n", "Did you mean Text"),
        ("text,label\na,\nb,x\nc,\n", r"2 rows \(line 2, 4\) without a label"),
        ("text,label\n ,x\nb,y\n", r"1 row \(line 2\) without any text"),
    ],
)
def test_bad_tables_say_what_was_found_and_where(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(csv_file(tmp_path, content))


def test_bad_lines_of_jsonl_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d\.jsonl:2 is not JSON"):
        read(csv_file(tmp_path, '{"text": "a", "label": "b"}\n{"text"\n', "d.jsonl"))
    with pytest.raises(DataError, match=r"d\.jsonl:1 holds a list"):
        read(csv_file(tmp_path, "[1]\n", "d.jsonl"))


def test_rows_that_start_on_one_line_are_known_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[{"text": "a"}, {"text": "b"},\n{"text": "c"}]')
    assert read_table(str(path)).index.tolist() == [1, 2, 3]
    assert [record.line for record in iter_records(str(path))] == [1, 2, 3]
    path.write_text('[{"text": "a"},\n\n{"text": "b"}]')
    assert read_table(str(path)).index.tolist() == [1, 3]


def test_a_line_separator_inside_a_json_string_is_content(tmp_path: Path) -> None:
    source = csv_file(tmp_path, '{"text": "a\u2028b", "label": "x"}\n', "d.jsonl")
    assert read(source) == [("f:1", "a\u2028b", "x")]


def test_half_of_a_surrogate_pair_is_named_with_its_line_and_a_whole_pair_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "broken \\ud83d"}\n')
    with pytest.raises(DataError, match=r"table\.jsonl:2 holds half of a surrogate pair"):
        read_table(str(path))
    path.write_text('{"text": "fine \\ud83d\\ude00"}\n')
    assert read_table(str(path))["text"].tolist() == ["fine \U0001f600"]


def test_a_damaged_parquet_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        read(csv_file(tmp_path, b"PAR1 nonsense", "d.parquet"))


def test_a_missing_file_suggests_its_neighbour_and_other_kinds_are_refused(tmp_path: Path) -> None:
    csv_file(tmp_path, "x")
    with pytest.raises(DataError, match=r"Did you mean train\.csv"):
        read_table(str(tmp_path / "trian.csv"))
    with pytest.raises(DataError, match=r"kind \.doc are not read; allowed are \.csv"):
        read_table(csv_file(tmp_path, "x", "t.doc"))


def test_a_hub_id_without_a_network_is_one_message() -> None:
    with pytest.raises(DataError, match="could not be had from the hub"):
        read_table("no-such-owner/no-such-data")


def test_a_hub_set_is_texts_as_a_table_and_keeps_its_lists_as_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "turns": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    train = datasets.Dataset.from_dict({"turns": [["a", "b"]], "label": [1]}, features=features)
    found = datasets.DatasetDict(train=train, validation=train)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    assert read_table("owner/name", split="test")["label"].tolist() == ["yes"]
    (record,) = iter_records("owner/name")
    assert record.values == {"turns": ["a", "b"], "label": "yes"}
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, validation"):
        read_table("owner/name", split="dev")


def test_an_encoding_that_is_given_is_used(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\ncafé,a\n".encode("cp1252"))
    assert read_table(source, encoding="cp1252")["text"].tolist() == ["café"]
    with pytest.raises(DataError, match="which Python does not know"):
        read_table(source, encoding="klingon")


def test_unknown_labels_and_a_single_class_are_refused(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\na,x\nb,yy\nc,x\n")
    examples = to_examples(read_table(source), COLUMNS, source="f")
    with pytest.raises(DataError, match=r"1 row with an unknown label: 'yy' \(f:3\).*x, y"):
        check_labels(examples, ["x", "y"])
    with pytest.raises(DataError, match="All 2 training examples have the label 'x'"):
        check_several_classes([examples[0], examples[2]])


def test_labels_are_ordered_as_people_count(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "text,label\na,10\nb,2\nc,b1\nd,A\n")
    assert label_names(to_examples(read_table(source), COLUMNS, source="f")) == (
        "2",
        "10",
        "A",
        "b1",
    )


def test_columns_are_guessed_only_where_there_is_one_way() -> None:
    table = pd.DataFrame({"notes": ["a"], "body": ["b"], "Label": ["c"]})
    odd = pd.DataFrame({"review": ["a"], "comment": ["b"], "Label": ["c"]})
    assert guess_columns(table, text=["body"], label=None) == Columns(("body",), "Label")
    assert guess_columns(table[["body", "Label"]], text=[], label=None).text == ("body",)
    with pytest.raises(DataError, match=r"Which columns hold the text.*review, comment"):
        guess_columns(odd, text=[], label=None)
    with pytest.raises(DataError, match="Which column holds the labels"):
        guess_columns(table[["notes", "body"]], text=[], label=None)
    pairs = pd.DataFrame({"id": ["1"], "Sentence_1": ["a"], "sentence 2": ["b"], "label": ["c"]})
    assert guess_columns(pairs, text=[], label=None).text == ("Sentence_1", "sentence 2")
    tagged = pd.DataFrame({"text": ["a", "b", "c", "d"], "tags": ["x", "y", "x", "y"]})
    assert guess_columns(tagged, text=[], label=None) == Columns(("text",), "tags")
    with pytest.raises(DataError, match="Which column holds the labels"):
        guess_columns(tagged.assign(tags=["1", "2", "3", "4"]), text=[], label=None)
    with pytest.raises(DataError, match=r"no column 'labell'.*Did you mean Label"):
        guess_columns(table, text=["body"], label="labell")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("id text date", "text"),
        ("Text title", "Text"),
        ("hypothesis id premise text", "premise hypothesis"),
        ("idx sentence1 sentence2", "sentence1 sentence2"),
        ("id question title body", "question title body"),
        ("title body id", "title body"),
        ("id review stars", "review"),
    ],
)
def test_of_several_columns_those_with_the_usual_names_are_taken_and_told(
    names: str, expected: str
) -> None:
    present, chosen = names.split(), tuple(expected.split())
    table = pd.DataFrame({**{name: ["a"] for name in present}, "label": ["b"]})
    found = guess_columns(table, text=[], label=None)
    assert found.text == chosen
    left = ", ".join(name for name in present if name not in chosen)
    note = guess_note(found, table)
    if left:
        assert f"{' and '.join(chosen)}, not from {left};" in str(note)
    assert guess_note(found, table[[*chosen, "label"]]) is None


def test_labels_that_are_several_joined_name_the_settings_that_read_them() -> None:
    table = pd.DataFrame({"text": ["t", "u", "v", "w"], "tags": ["a", "b", "a;b", ""]})
    with pytest.raises(DataError, match=r"1 row \(line 3\) without a label.*multi_label=true.*';'"):
        to_examples(table, Columns(("text",), "tags"), source="t")
    with pytest.raises(DataError, match=r"`taskfit predict`\.$"):
        to_examples(table.replace("a;b", "c;d"), Columns(("text",), "tags"), source="t")
