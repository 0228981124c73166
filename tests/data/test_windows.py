"""What is read in windows is what is read whole; rows that cannot be read cost only themselves."""

import gzip
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_round_trips import LABEL, RAW, TEXT, columns, written

from taskfit.data import notes_of, read_table
from taskfit.data.windows import open_table
from taskfit.errors import DataError

LAW = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
ROWS = st.lists(st.tuples(TEXT, LABEL), min_size=1, max_size=9)


def joined(source: Path, size: int, **options: str) -> pd.DataFrame:
    """Return all windows of a file as one table."""
    opened = open_table(str(source), **options)
    windows = [make() for make in opened.windows(size)]
    assert [len(w.table) for w in windows[:-1]] == [size] * (len(windows) - 1)
    assert not any(w.errors for w in windows)
    table = pd.concat([w.table for w in windows])
    assert len(table) == opened.num_rows
    assert list(table.columns) == opened.columns
    table.attrs["notes"] = opened.notes
    return table


def assert_same(source: Path, size: int, **options: str) -> None:
    """Check that a file is the same in windows and whole, or refused with the same words."""
    try:
        whole = read_table(str(source), **options)
    except DataError as error:
        message = str(error)
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            joined(source, size, **options)
        return
    parts = joined(source, size, **options)
    assert notes_of(parts) == notes_of(whole)
    assert list(parts.index) == list(whole.index)
    assert parts.to_dict("list") == whole.to_dict("list")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz"])
@LAW
@given(rows=ROWS, size=st.integers(1, 4))
def test_a_table_in_windows_is_the_table(
    tmp_path: Path, name: str, rows: list[tuple[str, str]], size: int
) -> None:
    written(columns(rows), tmp_path / name)
    assert_same(tmp_path / name, size)


@LAW
@given(rows=st.lists(st.lists(RAW, min_size=2, max_size=2), min_size=2, max_size=9), size=...)
def test_so_is_a_tsv_file_whose_quotes_may_be_anything(
    tmp_path: Path, rows: list[list[str]], size: bool
) -> None:
    lines = ["\t".join(fields) + "\n" for fields in [["text", "label"], *rows]]
    (tmp_path / "a.tsv").write_text("".join(lines), encoding="utf-8", newline="")
    try:
        whole = read_table(str(tmp_path / "a.tsv"))
    except DataError:
        return  # what then is a row of its own is the next law's
    parts = joined(tmp_path / "a.tsv", 1 + size)
    assert (parts.to_dict("list"), notes_of(parts)) == (whole.to_dict("list"), notes_of(whole))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfsep=;\r\ntext;label\r\na,b;x\r\n\r\nc;y\r\n",
        b"text,label\ra,x\rb,y\r",
        "text,label\na\rb,x\n\ufdd0c\ufdd01\r,y\n".encode(),
        "text;label\né;x\n;\nb;y".encode("utf-16"),
        b'text\tlabel\n"Hello."\tx\nplain\ty\n"a ""b"" c"\tz\n',
        b'text\tlabel\n"two\nlines"\tx\nplain\ty\n',
    ],
)
def test_so_is_what_other_programs_write(tmp_path: Path, content: bytes) -> None:
    for name in ("a.csv", "a.tsv"):
        (tmp_path / name).write_bytes(content)
        assert_same(tmp_path / name, 1)


def test_so_are_times_whose_texts_hang_on_one_another_and_keys_that_come_late(
    tmp_path: Path,
) -> None:
    times = {
        "day": ["2020-01-02", None, "2020-01-04"],
        "hour": ["2020-01-02", "2020-01-03 12:30", "2020-01-04"],
        "fraction": [None, "2020-01-03", "2020-01-04 12:30:00.25"],
        "zone": ["2020-01-02 00:00:00+00:00", "2020-01-03 01:02:03.000004+00:00", None],
    }
    table = pd.DataFrame(
        {k: pd.to_datetime(pd.Series(v), format="mixed") for k, v in times.items()}
    )
    table.assign(kind=pd.Categorical(["x", None, "y"])).to_parquet(
        tmp_path / "a.parquet", row_group_size=2
    )
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"b": [1.0], "a": null}\n{}\n{"c": "x"}\n')
    for size in (1, 2, 5):
        assert_same(tmp_path / "a.parquet", size)
        assert_same(tmp_path / "a.jsonl", size)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert_same(tmp_path / "a.parquet.gz", 2)


def test_a_hub_set_is_read_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": list("abcde"), "label": [0, 1, -1, 1, 0]}
    found = datasets.DatasetDict(test=datasets.Dataset.from_dict(rows, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    assert_same(Path("owner/name"), 2, split="test")


SOUND = {"text": ["a", "b, c", "d"], "label": ["x", "y", "x"]}


def bad_file(path: Path) -> None:
    """Write a table with a row behind its first and one behind its second that cannot be read."""
    if path.suffix == ".jsonl":
        bad = ['{"text"', '["a"]']
        sound = pd.DataFrame(SOUND).to_json(orient="records", lines=True).splitlines()
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        bad = [mark.join("abc"), f'"a" b{mark}x']
        head, *sound = pd.DataFrame(SOUND).to_csv(index=False, sep=mark).splitlines()
        sound[0] = f"{head}\n{sound[0]}"
    lines = [sound[0], bad[0], sound[1], bad[1], sound[2], ""]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path: Path, name: str) -> None:
    bad_file(tmp_path / name)
    with pytest.raises(DataError):
        read_table(str(tmp_path / name))
    for size in (1, 2, 9):
        opened = open_table(str(tmp_path / name), quotes="marks")
        assert opened.num_rows == 5
        windows = [make() for make in opened.windows(size)]
        table = pd.concat([w.table for w in windows])
        errors = [w.errors.get(i) for w in windows for i in range(len(w.table))]
        assert [error is not None for error in errors] == [False, True, False, True, False]
        start = 1 if name == "a.jsonl" else 2
        assert list(table.index) == list(range(start, start + 5))
        assert f"{name}:{start + 1} " in str(errors[1])
        assert table["text"].tolist() == ["a", "", "b, c", "", "d"]


def test_where_a_quote_swallows_lines_or_no_row_is_sound_the_table_is_refused(
    tmp_path: Path,
) -> None:
    for content, message in (
        ('text,label\na,x\n"b,y\nc,x\n', "opened in line 3 is closed nowhere"),
        ('text,label\n"b,y\nc,x\n"d" e,z\n', r"a\.csv:2 is not proper CSV|a\.csv:4"),
        ("text,label\na\nb\n", r"a\.csv:2 has 1 fields"),
    ):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            open_table(str(tmp_path / "a.csv"))
