"""What is read is what was written, in every format and by every writer."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskfit.data import notes_of, read_table
from taskfit.data.delimited import read_delimited
from taskfit.data.instructions import read_instructions
from taskfit.data.records import iter_records
from taskfit.data.tables import parse_table
from taskfit.errors import DataError
from taskfit.runs.partial import write_text_table

ODD = ('"', '""', "\n", "\r\n", "\r", "\t", ",", ";", "|", " ", "\u2028", "\x85", "\ufeff", "\0")
ODD += ("\U0001f600", "é", "e\u0301", "שלום", "\u202e", "\\", "'", "=1+1", "_x0041_", "nan", "a b")
TEXT = st.lists(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=6).map(
    "".join
)
LABEL = st.sampled_from(["010", "12:30", "yes", "null", "NA", "None", "²", "true", "1.0", "1"])
ROWS = st.lists(st.tuples(TEXT, LABEL), min_size=1, max_size=6)
# Of a table that is written whole into a folder, which all examples of a test may share.
LAW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def columns(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["text", "label"])


def lines_of(text: str) -> Callable[[], Iterator[str]]:
    return lambda: iter(io.StringIO(text, newline="\n"))


def same(table: pd.DataFrame, rows: list[tuple[str, str]]) -> bool:
    return list(table[["text", "label"]].itertuples(index=False, name=None)) == rows


def written(table: pd.DataFrame, path: Path) -> None:
    """Write a table as pandas does by default."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    elif suffix in ("json", "jsonl"):
        table.to_json(path, orient="records", lines=suffix == "jsonl")
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_excel(path, index=False)


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.tsv.gz"]
)
@LAW
@given(ROWS)
def test_what_pandas_writes_comes_back(
    tmp_path: Path, name: str, rows: list[tuple[str, str]]
) -> None:
    written(columns(rows), tmp_path / name)
    table = read_table(str(tmp_path / name))
    assert same(table, rows)
    assert not notes_of(table)


@settings(LAW, max_examples=10)
@given(ROWS)
def test_what_pandas_writes_into_excel_files_comes_back(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    pytest.importorskip("openpyxl")
    # XML has no control characters and no carriage returns, and = begins a formula.
    # Nor can an escape of Excel's for characters be told from a text that is written like one.
    rows = [
        (f".{''.join(c for c in text if c >= ' ' or c in chr(10) + chr(9))}".replace("_", "-"), b)
        for text, b in rows
    ]
    rows = [(t.translate({0xFFFE: None, 0xFFFF: None}), label) for t, label in rows]
    written(columns(rows), tmp_path / "a.xlsx")
    assert same(read_table(str(tmp_path / "a.xlsx")), rows)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
@given(rows=ROWS)
def test_what_taskfit_writes_comes_back(kind: str, rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    write_text_table(columns(rows).assign(p=0.5), file, kind=kind)
    lines = list(enumerate(io.StringIO(file.getvalue(), newline="\n"), start=1))
    table = parse_table(lambda: iter(lines), kind=kind, source="f")
    assert same(table, rows)
    assert table["p"].tolist() == ["0.5"] * len(rows)
    assert not notes_of(table)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@given(rows=ROWS)
@example(rows=[(",", "010"), ("\r,", "010")])
def test_what_the_csv_module_writes_comes_back(
    quoting: int, delimiter: str, rows: list[tuple[str, str]]
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    assert same(read_delimited(lines_of(file.getvalue()), "f", delimiter), rows)


@given(ROWS)
def test_what_excel_saves_as_text_with_tabs_comes_back(rows: list[tuple[str, str]]) -> None:
    def field(text: str) -> str:
        odd = any(c in text for c in '"\t\r\n,')
        return '"' + text.replace('"', '""') + '"' if odd else text

    lines = ["\t".join(map(field, row)) + "\r\n" for row in [("text", "label"), *rows]]
    assert same(read_delimited(lines_of("".join(lines)), "f", "\t"), rows)


RAW = TEXT.map(lambda text: "".join(c for c in text if c not in "\t\r\n"))


@given(st.lists(st.tuples(RAW, LABEL), min_size=1, max_size=6))
def test_quotes_of_a_tsv_file_without_marks_are_characters_of_its_texts(
    rows: list[tuple[str, str]],
) -> None:
    rows = [(text.replace('""', '"'), label) for text, label in rows]
    rows.append(('"No," she said, "never."', "1"))  # no field of a file with marks
    text = "".join("\t".join(row) + "\n" for row in [("text", "label"), *rows])
    assert same(read_delimited(lines_of(text), "f", "\t"), rows)
    assert same(read_delimited(lines_of(text), "f", "\t", quotes="text"), rows)


@pytest.mark.parametrize(
    ("fields", "marks", "told"),
    [
        (['"say ""a"" b"', "plain"], True, False),
        (['"a\nb"', "plain"], True, False),
        (['"one"', '"two"'], True, True),
        (['"Hello."', "plain"], False, True),
        (['"Yes, sir."', "plain"], True, True),
        (['"Yes, sir."', "No, sir."], False, True),
        (['he said "a"', "plain"], False, False),
        (['"he said', "plain"], False, False),
        (['"say ""a"" b"', 'he said "a"'], True, True),
    ],
)
def test_a_tsv_file_that_could_be_meant_both_ways_is_read_by_a_rule_and_told(
    fields: list[str], marks: bool, told: bool
) -> None:
    text = "text\tlabel\n" + "".join(f"{field}\tx\n" for field in fields)
    table = read_delimited(lines_of(text), "f", "\t")
    forced = read_delimited(lines_of(text), "f", "\t", quotes="marks" if marks else "text")
    assert table["text"].tolist() == forced["text"].tolist()
    assert (table["text"].tolist() == fields) != marks
    assert bool(notes_of(table)) == told
    assert all("--quotes" in note and "data.quotes" in note for note in notes_of(table))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"])
def test_every_format_gives_the_same_texts_of_numbers_and_truths(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"int": [1, 10], "float": [1.0, 0.25], "truth": [True, False]})
    if name == "a.xlsx":
        pytest.importorskip("openpyxl")
        table["float"] = [1.5, 0.25]  # Excel has one kind of number
    written(table, tmp_path / name)
    found = read_table(str(tmp_path / name))
    assert found["int"].tolist() == ["1", "10"]
    assert found["float"].tolist() == [str(v) for v in table["float"]]
    assert found["truth"].tolist() == ["True", "False"]


def test_a_number_is_the_text_that_json_has_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"label": 1}\n{"label": 1.0}\n{"label": 0.10}\n{"label": null}\n{}\n')
    assert read_table(str(path))["label"].tolist() == ["1", "1.0", "0.10", "", ""]


def test_an_excel_file_shows_days_times_numbers_and_names_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    import datetime

    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        [None, None],
        [" text ", "label", None],
        ["a", datetime.datetime(2020, 1, 2)],
        ["b", datetime.datetime(2020, 1, 2, 12, 30)],
        ["c", datetime.time(12, 30)],
        [],
        ["=A1", "010"],
        ["", ""],
    ):
        sheet.append(row)
    book.create_sheet("empty")
    book.create_sheet("notes").append(["x"])
    book.save(tmp_path / "a.csv")
    table = read_table(str(tmp_path / "a.csv"))
    assert list(table.columns) == ["text", "label"]
    assert table["label"].tolist() == ["2020-01-02", "2020-01-02 12:30:00", "12:30", "", "010"]
    assert list(table.index) == [3, 4, 5, 6, 7]
    assert table["text"][7].what == "a formula without a result"
    assert "not notes" in notes_of(table)[0]
    assert [r.values["text"] for r in iter_records(str(tmp_path / "a.csv"))][:2] == ["a", "b"]


def test_blank_rows_are_rows_in_every_format_and_blank_lines_are_none(tmp_path: Path) -> None:
    rows = [("a", "x"), ("", ""), ("b", "y")]
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.xlsx"):
        written(columns(rows), tmp_path / name)
        assert same(read_table(str(tmp_path / name)), rows), name
    table = parse_table(
        lambda: iter([(1, "text\n"), (2, '""\n'), (3, "\n"), (4, "a")]), kind=".csv", source="f"
    )
    assert table["text"].to_dict() == {2: "", 4: "a"}


def test_a_file_of_excel_with_its_separator_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffsep=;\r\ntext;label\r\na,b;x\r\n".encode())
    table = read_table(str(path))
    assert table.to_dict("list") == {"text": ["a,b"], "label": ["x"]}
    assert list(table.index) == [3]


def test_bytes_are_decoded_and_other_values_are_known_as_no_texts(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [b"caf\xc3\xa9", b"\xff"], "words": [["a"], None]})
    table.to_parquet(tmp_path / "a.parquet")
    found = read_table(str(tmp_path / "a.parquet"))
    assert found["text"][0] == "café"
    assert found["text"][1].what == "bytes that are not UTF-8"
    assert (found["words"][0], found["words"][0].value) == ('["a"]', ["a"])
    assert found["words"][1] == ""
    with pytest.raises(DataError, match="line 2: text is bytes that are not UTF-8"):
        read_instructions(str(tmp_path / "a.parquet"), kind="text")


def test_a_category_and_a_day_are_texts(tmp_path: Path) -> None:
    days = pd.to_datetime(["2020-01-02", None])
    table = pd.DataFrame({"label": pd.Categorical(["x", None]), "day": days}, index=[7, 7])
    table.to_parquet(tmp_path / "a.parquet")
    found = read_table(str(tmp_path / "a.parquet"))
    assert found.to_dict("list") == {"label": ["x", ""], "day": ["2020-01-02", ""]}
    assert list(found.index) == [0, 1]


@pytest.mark.parametrize("escape", ["\\ud83d", "\\udc00", "\\uD83D x"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_surrogate_pair_is_refused_with_its_line(
    tmp_path: Path, name: str, escape: str
) -> None:
    rows = ['{"text": "\\ud83d\\ude00"}', f'{{"text": "{escape}"}}']
    content = "\n".join(rows) if name == "a.jsonl" else "[" + ",\n".join(rows) + "]"
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}:2 holds half of a surrogate pair"):
        read_table(str(tmp_path / name))


def test_a_huge_number_in_json_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "x"}) + '\n{"a": ' + "1" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2 is not JSON"):
        read_table(str(tmp_path / "a.jsonl"))
