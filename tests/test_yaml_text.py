import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taskfit import yaml_text

PIECES = (
    *("a", "b c", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "'", '"', "#", "|\n", ">-\n"),
    *("&x ", "*x", "<<", "null", "010", "1e3", "é", "\u2028", "\t", "?", "%", "!t ", "---\n"),
)


def read(text: str, loader: type) -> str:
    try:
        return repr(yaml.load(text, Loader=loader))
    except yaml.YAMLError:
        return "no YAML"


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_fast_loader_reads_what_the_slow_one_reads(text: str) -> None:
    fast, slow = read(text, yaml_text._FastLoader), read(text, yaml_text._Loader)
    # What the fast one refuses the other reads; a tab behind a word only the fast one takes.
    assert fast == slow or "no YAML" in (fast, slow)


def test_an_error_shows_the_line() -> None:
    with pytest.raises(yaml.YAMLError, match=r"stands twice(.|\n)*line 1(.|\n)*line 2"):
        yaml_text.parse_yaml("first: 1\nfirst: 2\n")
    with pytest.raises(yaml.YAMLError, match=r"\n +\w*: \[1, 2"):
        yaml_text.parse_yaml("sizes: [1, 2\n")
