"""What the table of methods says without importing them is what they say themselves."""

import pytest

from taskfit.methods.table import METHODS, WITHOUT_LEARNING


@pytest.mark.parametrize("name", METHODS)
def test_the_table_agrees_with_the_classes(name: str) -> None:
    method = METHODS[name]
    assert METHODS.summary(name) == (method.__doc__ or "").splitlines()[0]
    assert method.learns == (name not in WITHOUT_LEARNING)
