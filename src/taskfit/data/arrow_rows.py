"""Columns of Arrow tables, as Parquet files and hub sets hold them, as texts."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from taskfit.data.cells import text_of, text_table
from taskfit.data.delimited import check_columns

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_table(
    table: "pa.Table",
    source: str,
    *,
    start: int = 0,
    finest: Mapping[str, pd.Timestamp] = MappingProxyType({}),
) -> pd.DataFrame:
    """Turn the values of an Arrow table into text.

    Args:
        table: All rows, or some that follow one another.
        source: What messages call it.
        start: The rows before them, with which the index begins.
        finest: Of a table in parts: column of times -> the time that is written finest in all of
            it; see `finest_times`.

    Raises:
        DataError: If columns have the same name.
    """
    check_columns([str(name) for name in table.column_names], source)
    columns = {
        str(name): _texts(table.column(place), finest.get(str(name)))
        for place, name in enumerate(table.column_names)
    }
    return text_table(columns, range(start, start + table.num_rows))


def cut_evenly(tables: Iterable["pa.Table"], size: int) -> Iterator["pa.Table"]:
    """Yield the rows of tables in tables of so many rows each, but for the last."""
    import pyarrow as pa

    held: list[Any] = []
    for table in tables:
        held.append(table)
        while sum(one.num_rows for one in held) >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held = [whole.slice(size)]
    if any(one.num_rows for one in held):
        yield pa.concat_tables(held)


def time_columns(schema: "pa.Schema") -> list[str]:
    """Return the columns of times, whose texts hang on one another."""
    import pyarrow as pa

    return [field.name for field in schema if pa.types.is_timestamp(field.type)]


def finest_times(tables: Iterable["pa.Table"]) -> dict[str, pd.Timestamp]:
    """Return of each column the time that is written finest.

    A column of days is written without times, and one fraction of a second gives all of them one.

    Args:
        tables: The rows of a table in parts, with columns of times alone.
    """
    found: dict[str, tuple[int, pd.Timestamp]] = {}
    for table in tables:
        for name in table.column_names:
            times: Any = table.column(name).to_pandas().dropna()
            if times.empty:
                continue
            own = times.dt
            rank = 4 * (own.nanosecond > 0)
            for value, is_so in (
                (3, own.microsecond % 1000 > 0),
                (2, own.microsecond > 0),
                (1, own.normalize() != times),
            ):
                rank = rank.where(rank >= value, value * is_so)
            place = int(rank.to_numpy().argmax())
            if name not in found or found[name][0] < int(rank.iloc[place]):
                found[name] = (int(rank.iloc[place]), times.iloc[place])
    return {name: time for name, (_, time) in found.items()}


def _texts(column: "pa.ChunkedArray", finest: pd.Timestamp | None) -> list[str]:
    """Return the values of a column as pandas writes them into CSV files."""
    import pyarrow as pa

    kind: Any = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind):
        # A column of days is one without times.
        times = column.to_pandas()
        if finest is not None:
            times = pd.concat([times, pd.Series([finest]).astype(times.dtype)], ignore_index=True)
        shown = times.astype(str).fillna("NaT").tolist()[: len(column)]
        return ["" if text == "NaT" else text for text in shown]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            values = column.to_numpy().tolist()
        except ValueError:
            # Some row is not UTF-8, though the file says so.
            return [text_of(raw) for raw in column.cast(pa.binary()).to_pylist()]
        return ["" if value is None else value for value in values]
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return ["" if v is None or v != v else str(v) for v in column.to_numpy()]
    return [text_of(value) for value in column.to_pylist()]
