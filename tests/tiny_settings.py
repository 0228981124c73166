"""Settings for tests of several methods."""

from collections.abc import Sequence

from taskfit.overrides import parse_overrides
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.unread import read_only


def settings_for(shared: Sequence[str], own: Sequence[str] = ()) -> RunSettings:
    """Return settings whose method takes what it reads of the shared and must read its own."""
    given = parse_overrides([*shared, *own])
    return read_only(settings_from_dict(given, asked=parse_overrides(own)))
