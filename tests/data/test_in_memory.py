"""Texts and labels given in Python: what may be given comes back, what may not is named."""

import datetime
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from taskfit.data.in_memory import check_some_text, label_array, label_name, text_rows
from taskfit.errors import DataError

TEXTS = ["a", "b ", ""]
KINDS = {
    "strings": ["x", "y", "x"],
    "whole numbers": [3, -1, 3],
    "booleans": [True, False, True],
    "floats": [1.0, 0.0, 1.0],
}


@pytest.mark.parametrize(
    "given",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array(TEXTS, dtype=np.dtypes.StringDType()),
        pd.Series(TEXTS, index=[7, 7, "z"]),
        pd.Series(TEXTS, dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        pd.Index(TEXTS),
        pd.DataFrame({"text": TEXTS}, index=[5, 5, 1]),
        [{"text": text} for text in TEXTS],
    ],
    ids=lambda given: type(given).__name__,
)
def test_texts_come_back_in_their_order_whatever_holds_them(given: Any) -> None:
    assert text_rows(given) == [{"text": text} for text in TEXTS]
    assert text_rows(given, ["text"]) == [{"text": text} for text in TEXTS]


def test_rows_have_the_columns_of_the_task_in_any_order_and_further_ones_are_left_out() -> None:
    table = pd.DataFrame({"c": [1, 2], "b": ["x", "y"], "a": ["p", "q"]})
    expected = [{"a": "p", "b": "x"}, {"a": "q", "b": "y"}]
    assert text_rows(table, ["a", "b"]) == expected
    assert text_rows(table.to_dict("records"), ["a", "b"]) == expected
    assert text_rows(table)[0] == {"c": "1", "b": "x", "a": "p"}
    # Numbers with a gap filled are floats, as in a table from a file.
    assert text_rows([{"a": 2.0, "b": 1.5}]) == [{"a": "2", "b": "1.5"}]


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, pd.NaT, np.float64("nan")])
def test_what_is_missing_is_named_by_position(missing: object) -> None:
    with pytest.raises(DataError, match=r"labels\[1\] \(.*\), labels\[3\] \(.*\) are missing"):
        label_array(["x", missing, "y", missing])
    with pytest.raises(DataError, match=r"labels\[0\] \(.*\) is missing"):
        label_array(pd.Series([missing, 1, 2], index=[3, 4, 5], dtype=object))
    with pytest.raises(DataError, match=r"texts\[1\] is a \w+ \(.*, a missing text\)"):
        text_rows(["a", missing])
    for rows in (
        pd.DataFrame({"a": ["p", "q"], "b": ["x", missing]}, dtype=object),
        [{"a": "p", "b": "x"}, {"a": "q", "b": missing}],
    ):
        with pytest.raises(DataError, match=r"texts\[1\]\['b'\] \(.*\) is missing in column 'b'"):
            text_rows(rows)
        assert text_rows(rows, ["a"]) == [{"a": "p"}, {"a": "q"}]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one", r"texts is one string; give a list"),
        (b"one", r"texts is one string"),
        ({"a": "b"}, r"texts is a mapping"),
        ({"a", "b"}, r"texts is a set; give a list"),
        ((text for text in TEXTS), r"texts is a generator; give a list"),
        (None, r"texts is a NoneType"),
        (5, r"texts is a int"),
        ([], "There are no texts"),
        (pd.DataFrame({"text": []}), "There are no texts"),
        (np.zeros((3, 2)), r"matrix of shape \(3, 2\)"),
        (np.array("a"), r"matrix of shape \(\)"),
        (["a", 5], r"texts\[1\] is a int"),
        (["a", ["b"]], r"texts\[1\] is a list"),
        (["a", b"b"], r"texts\[1\] is a bytes"),
        ([{}], r"texts\[0\] has no columns"),
        ([{"a": "x"}, {"b": "x"}], r"texts\[1\] has no column 'a'"),
        ([{"a": "x"}, {"a": "x", "c": "y"}], r"texts\[1\] has a column 'c'"),
        (["a", {"a": "x"}], r"texts\[1\] has no column 'text'"),
        ([{"a": "x"}, {"a": ["y"]}], r"texts\[1\]\['a'\] is a list"),
        (pd.DataFrame({"a": ["x", b"y"]}), r"texts\[1\]\['a'\] is a bytes"),
        (pd.DataFrame([["x", "y"]], columns=["a", "a"]), "several columns named a"),
        (["a", "b\ud83d"], r"texts\[1\] holds half of a surrogate pair at character 2"),
        ([{"a": "x", "b": "\udc00"}], r"texts\[0\]\['b'\] holds half"),
    ],
)
def test_texts_that_are_none_are_refused_in_words(texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        text_rows(texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holder", [list, tuple, np.array, pd.Series, pd.DataFrame])
def test_labels_keep_their_type(kind: str, holder: Any) -> None:
    found = label_array(holder(KINDS[kind]))
    assert found.tolist() == KINDS[kind]
    assert [type(value) for value in found.tolist()] == [type(value) for value in KINDS[kind]]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "bool", "<U3", "object"])
def test_arrays_of_labels_keep_their_dtype(dtype: str) -> None:
    values = ["0", "1"] if dtype in ("<U3", "object") else [0, 1]
    assert label_array(np.array(values, dtype=dtype)).dtype == np.dtype(dtype)


def test_nullable_and_categorical_labels_are_plain_ones() -> None:
    assert label_array(pd.Series([1, 2], dtype="Int64")).dtype.kind == "i"
    assert label_array(pd.Series([True, False], dtype="boolean")).dtype.kind == "b"
    assert label_array(pd.Series(["x", "y"], dtype="category")).tolist() == ["x", "y"]
    assert label_array(pd.Series(["x", "y"], dtype="string")).tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("pos", "labels is one string; give a list"),
        ({"a": 1}, "labels is a mapping"),
        ({"a", "b"}, "labels is a set"),
        (iter(["a"]), "labels is a list_iterator"),
        (["a", 1], r"one type, but there are strings \(labels\[0\]: 'a'\), numbers \(labels\[1\]"),
        ([True, 1], "one type, but there are booleans"),
        ([0.5, 1.0], r"Unknown label type: continuous. labels\[0\] is 0.5"),
        ([math.inf, 1.0], r"continuous. labels\[0\] is inf"),
        (["a", ["b", "c"]], r"labels\[1\] is a list .* A text has one label here"),
        ([{"a": 1}], r"labels\[0\] is a dict"),
        ([b"a"], r"labels\[0\] is a bytes"),
        ([datetime.date(2024, 1, 1)], r"labels\[0\] is a date"),
        (["a", " b"], r"labels\[1\] is ' b', with white space around it"),
        (["a\n"], r"labels\[0\] is 'a\\n'"),
        (["a", ""], r"labels\[1\] is missing \(''"),
        (["a", "\u00a0"], r"labels\[1\] is missing"),
        (["a", "b\udfff"], r"labels\[1\] holds half of a surrogate pair at character 2"),
        (np.eye(3), r"y should be a 1d array, got an array of shape \(3, 3\)"),
        (pd.DataFrame({"a": [1], "b": [2]}), r"shape \(1, 2\)"),
    ],
)
def test_labels_that_are_none_are_refused_in_words(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_array(labels)


def test_a_message_lists_the_first_few_positions() -> None:
    with pytest.raises(DataError, match=r"labels\[4\] \(None\) and 3 more are missing"):
        label_array([None] * 8)


def test_names_of_labels_are_those_of_a_table() -> None:
    assert [label_name(value) for value in (1, 2.0, True, "x y")] == ["1", "2", "True", "x y"]


def test_a_row_without_any_text_teaches_nothing() -> None:
    check_some_text([{"a": "", "b": "x"}])
    with pytest.raises(DataError, match=r"texts\[1\] is without any text"):
        check_some_text([{"a": "x"}, {"a": " \n"}])
