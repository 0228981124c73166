"""Names that look the same and are not: told apart, and shown with what cannot be seen."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Letters of other scripts that look like Latin ones.
TWINS = str.maketrans(
    "АВСЕНІЈКМОРЅТУХаваесһіјорѕухΑΒΕΖΗΙΚΜΝΟΡΤΥΧοıǀ‐‑‒–—−‘’“”",
    "ABCEHIJKMOPSTYXabaechijopsyxABEZHIKMNOPTYXoil------''\"\"",
)
WHOLE_NUMBER = re.compile(r"([-+]?\d+)\.0+")
UNSEEN = ("C", "M", "Z")
# Forms of characters that can be told from these by eye: ² is not 2.
TOLD_APART = ("<super>", "<sub>", "<circle>", "<square>", "<fraction>")
SHOWN = 5


def visible(name: str) -> str:
    """Return a name in quotes, with an escape for every character that cannot be told by eye.

    These are spaces other than the usual one, invisible characters, accents of their own, forms of
    other characters such as full-width ones, and letters of other scripts that look like Latin
    ones beside Latin letters.
    """
    mixed = bool(re.search("[A-Za-z]", name))
    shown = "".join(_escaped(c, mixed=mixed) for c in name)
    return f"'{shown}'"


def _escaped(c: str, *, mixed: bool) -> str:
    if " " <= c <= "~":
        return c
    if unicodedata.category(c).startswith(UNSEEN) or _plain(c) != c or (mixed and ord(c) in TWINS):
        return c.encode("unicode_escape").decode("ascii")
    return c


def look(name: str) -> str:
    """Return what a name looks like: equal for names that people take for the same."""
    plain = "".join(map(_plain, unicodedata.normalize("NFC", name))).translate(TWINS)
    kept = "".join(
        c for c in plain if unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cn") or c.isspace()
    )
    # Selectors of variants are marks that show nothing by themselves.
    kept = re.sub("[\ufe00-\ufe0f]", "", " ".join(kept.split()))
    return WHOLE_NUMBER.sub(r"\1", unicodedata.normalize("NFC", kept.casefold()))


def _plain(c: str) -> str:
    told = unicodedata.decomposition(c).startswith(TOLD_APART)
    return c if told else unicodedata.normalize("NFKC", c)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return groups of different names that look the same, each in order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[look(name)].append(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def look_alike_note(names: Iterable[str], *, stripped: bool = True) -> str | None:
    """Say which labels look the same, with what tells them apart made visible.

    Args:
        names: As they were written.
        stripped: Whether labels are read without spaces around them.

    Returns:
        One line, or None where all look different.
    """
    distinct, merged = [], []
    for group in look_alikes(names):
        by_name = defaultdict(list)
        for name in group:
            by_name[name.strip() if stripped else name].append(name)
        merged += [spellings for spellings in by_name.values() if len(spellings) > 1]
        if len(by_name) > 1:
            distinct.append(sorted(by_name))
    parts = []
    if distinct:
        parts.append(
            f"labels that look the same count as different ones: {_some(distinct)}; write them "
            "alike if they are one"
        )
    if merged:
        parts.append(f"labels that differ in spaces around them are read as one: {_some(merged)}")
    return "; ".join(parts) or None


def _some(groups: list[list[str]]) -> str:
    shown = [" and ".join(map(visible, group)) for group in groups[:SHOWN]]
    return ", ".join(shown) + (f", {len(groups) - SHOWN} more" if len(groups) > SHOWN else "")
