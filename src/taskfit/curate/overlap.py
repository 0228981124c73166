"""Remove rows that stand in evaluation sets."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from taskfit.curate.context import Context, need_package
from taskfit.curate.duplicates import nearest_by_cosine
from taskfit.curate.items import ItemFile, Removal, Verdict, compared, digest, normalised
from taskfit.curate.settings import OverlapStep, SourceSettings
from taskfit.data.instructions import open_instructions
from taskfit.errors import SettingsError

WORD = re.compile(r"\w+")


class Evaluations(NamedTuple):
    """The texts of all evaluation sets.

    Attributes:
        texts: Prompts, or texts where there are no prompts, by the id of their row.
        names: Name of the set of each id.
        exact: Normalised prompts and whole rows -> id.
        grams: Runs of words -> id.
    """

    texts: dict[str, str]
    names: dict[str, str]
    exact: dict[bytes, str]
    grams: dict[bytes, str]


def run_overlap(step: OverlapStep, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Yield each row; those that an evaluation set holds are removed.

    A row overlaps if its prompt or its whole text is the same as one of the set (normalised), if it
    has a run of words in common with it (GPT-3, Brown et al. 2020, appendix C: 13 words), or if
    the embeddings of both prompts are near.
    """
    if not step.sets:
        raise SettingsError(
            "overlap: there is no evaluation set; give --against NAME=FILE, or `sets:` in the step."
        )
    found = read_evaluations(step.sets, step.words)
    near = {}
    if step.threshold is not None:
        near = _near(items, context, found, encoder=step.encoder, threshold=step.threshold)
    context.facts["sets"] = {name: list(found.names.values()).count(name) for name in step.sets}
    for number, item in enumerate(items):
        texts = (compared(item.row, "prompt"), compared(item.row, "row"))
        keys = [digest(normalised(text)) for text in texts]
        hit = next((found.exact[key] for key in keys if key in found.exact), None)
        if hit is not None:
            reason = f"stands in {found.names[hit]}"
            yield item, Removal(reason, of=hit, similarity=1.0)
            continue
        grams = word_runs(texts[1], step.words) if step.words else ()
        hit = next((found.grams[gram] for gram in grams if gram in found.grams), None)
        if hit is not None:
            yield item, Removal(f"{step.words} words of {found.names[hit]}", of=hit)
        elif number in near:
            other, cosine = near[number]
            yield item, Removal(f"near to {found.names[other]}", of=other, similarity=cosine)
        else:
            yield item, None


def read_evaluations(sets: dict[str, SourceSettings], words: int | None) -> Evaluations:
    """Read evaluation sets.

    Args:
        sets: By name.
        words: Length of runs of words, or None.

    Raises:
        DataError: If one cannot be read.
    """
    result = Evaluations({}, {}, {}, {})
    for name, settings in sets.items():
        _, rows = open_instructions(
            settings.file,
            kind=settings.kind,
            columns=settings.columns,
            need_answer=False,
            name=name,
        )
        for row in rows:
            prompt, whole = compared(row, "prompt"), compared(row, "row")
            if not prompt.strip():
                continue
            result.texts[row.id] = prompt
            result.names[row.id] = name
            for text in (prompt, whole):
                result.exact.setdefault(digest(normalised(text)), row.id)
            for gram in word_runs(whole, words) if words else ():
                result.grams.setdefault(gram, row.id)
    return result


def word_runs(text: str, words: int) -> list[bytes]:
    """Return a short hash of each run of `words` words of a text."""
    found = WORD.findall(normalised(text))
    return [digest(" ".join(found[i : i + words]))[:8] for i in range(len(found) - words + 1)]


def _near(
    items: ItemFile, context: Context, found: Evaluations, *, encoder: str, threshold: float
) -> dict[int, tuple[str, float]]:
    """Return, for each row that is near to an evaluation prompt, the nearest and its cosine."""
    need_package("faiss", "the step `overlap` with a threshold")
    # In the order of their hashes, so that ties do not depend on the order of files.
    theirs = sorted({text: name for name, text in found.texts.items()}.items(), key=_by_hash)
    vectors = context.embed([text for text, _ in theirs], encoder)
    ours = context.embed([compared(item.row, "prompt") for item in items], encoder)
    nearest, cosines = nearest_by_cosine(ours, vectors)
    return {
        int(number): (theirs[nearest[number]][1], float(cosines[number]))
        for number in np.flatnonzero(cosines >= threshold)
    }


def _by_hash(text_and_name: tuple[str, str]) -> bytes:
    return digest(text_and_name[0])
