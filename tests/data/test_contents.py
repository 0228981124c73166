"""A file is what it holds, whatever it is called; what is not read is named with what to do."""

import gzip
import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from taskfit.data import read_table, rename_columns
from taskfit.data.records import iter_records
from taskfit.data.sources import decode_lines
from taskfit.errors import DataError

TABLE = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(zipfile.ZipInfo(name), "text,label\na,x\n")
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_a_table_under_another_name_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    TABLE.to_parquet(path)
    assert read_table(str(path)).to_dict("list") == TABLE.to_dict("list")
    if name.endswith((".csv", ".tsv")):
        path.write_text(TABLE.to_json(orient="records"))
        assert read_table(str(path)).to_dict("list") == TABLE.to_dict("list")
        path.write_text(TABLE.to_json(orient="records", lines=True))
        assert [r.values for r in iter_records(str(path))] == TABLE.to_dict("records")
        sep = "\t" if name == "a.tsv" else ","
        path.write_bytes(gzip.compress(TABLE.to_csv(index=False, sep=sep).encode()))
        assert read_table(str(path)).to_dict("list") == TABLE.to_dict("list")


def test_a_file_that_was_unpacked_but_not_renamed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_text(TABLE.to_csv(index=False))
    assert read_table(str(path)).to_dict("list") == TABLE.to_dict("list")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"an old Excel file \(\.xls\).*\.xlsx"),
        (archive("a.csv"), r"a zip archive \(of a\.csv\)\. Unpack it"),
        (archive("xl/workbook.bin"), r"binary Excel file"),
        (archive("mimetype", "content.xml"), "an OpenDocument file"),
        (archive("xl/workbook.xml"), "an Excel file that cannot be read"),
        (archive("xl/workbook.xml")[:60], "an Excel file, and damaged"),
        (b"BZh91AY", "packed by bzip2"),
        (b"\xfd7zXZ\x00", "packed by xz"),
        (b"\x28\xb5\x2f\xfd", "packed by zstandard"),
        (b"%PDF-1.7", "a PDF"),
        (b"\n <!DOCTYPE HTML><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'<table border="1">', "a table of a web page"),
        (gzip.compress(b"text,label\na,x\n", mtime=0)[:-9], "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.xls"])
def test_what_is_not_read_is_named(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(str(path))
    with pytest.raises(DataError, match=message):
        list(iter_records(str(path)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nhé\ufeff,日\n".encode(encoding))
    for given in ("utf-8", "UTF8", "utf_8", encoding):
        assert read_table(str(path), encoding=given).to_dict("list") == {
            "text": ["hé\ufeff"],
            "label": ["日"],
        }


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named_and_read_when_it_is_given(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nhé日,x\n".encode(encoding))
    with pytest.raises(DataError, match=f"UTF-16 without a byte order mark.*--encoding {encoding}"):
        read_table(str(path))
    assert read_table(str(path), encoding=encoding)["text"].tolist() == ["hé日"]


def test_bytes_that_are_no_text_in_any_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n\xe9\x00\xff,x\n")
    with pytest.raises(DataError, match="is no text, as it seems"):
        read_table(str(path))


def test_a_cut_character_of_utf_16_is_named() -> None:
    with pytest.raises(DataError, match="f:1 is not utf-8"):
        list(decode_lines(io.BytesIO(b"\xff\xfea"), "f", "utf-8"))


def test_a_folder_is_told_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; give a file of it\.$"):
        read_table(str(tmp_path))
    TABLE.to_csv(tmp_path / "a.csv.gz", index=False)
    with pytest.raises(DataError, match=r"such as .*a\.csv\.gz \(it holds a\.csv\.gz\)"):
        list(iter_records(str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\na,x\n"b,y\nc,x\n', r"a\.csv:3 .*opened in line 3 is closed nowhere"),
        ('text,label\n"a\nb",x\nc,"y\nd,x\n', r"a\.csv:4 .*opened in line 4"),
        ('text,label\n"a" b,x\n', r"a\.csv:2 .*goes on behind its closing quote"),
        ('text,label\n"a \\"b\\"",x\n', r"a\.csv:2 .*written twice"),
        ('text,label\n"a,x\nb,y\nc",x\nd,"y\n', r"a\.csv:5 .*opened in line 5"),
        (
            'text,label\na,"b\nc",d\n',
            r"a\.csv:2 has 3 fields.*opened in line 2 is closed in line 3",
        ),
    ],
)
def test_an_open_quote_is_told_where_it_was_opened(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(str(path))


def test_an_uneven_tsv_file_is_told_for_both_meanings_of_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a\tx\nb\ty\tz\n')
    with pytest.raises(DataError, match=r"a\.tsv:3 has 3 fields(.|\n)*a\.tsv:2 is not proper TSV"):
        read_table(str(path))


def test_columns_take_the_names_of_a_task() -> None:
    table = pd.DataFrame({"body": ["a"], "text": ["b"], "label": ["x"]})
    found = rename_columns(table, {"text": "body"}, source="f")
    assert found.to_dict("list") == {"text": ["a"], "label": ["x"]}
    swapped = rename_columns(table, {"text": "body", "body": "text"}, source="f")
    assert swapped.to_dict("list") == {"text": ["a"], "body": ["b"], "label": ["x"]}
    with pytest.raises(DataError, match="f has no column 'corpus'; it has: body"):
        rename_columns(table, {"text": "corpus"}, source="f")
