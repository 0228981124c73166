"""Remove rows that repeat others: exactly, or nearly.

Legend: N rows, D width of the encoder.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskfit.curate.context import Context, need_package
from taskfit.curate.embed import Vectors
from taskfit.curate.items import Item, ItemFile, Removal, Verdict, compared, digest, normalised
from taskfit.curate.settings import ExactStep, NearStep

# Rows that are compared in one product: enough to fill the cores, little enough for the memory.
BLOCK = 1024
SHINGLE = 5
PERMUTATIONS = 128


def run_exact(step: ExactStep, items: ItemFile, _: Context) -> Iterator[Verdict]:
    """Yield each row; the first of those with the same normalised text is kept."""
    first: dict[bytes, str] = {}
    for item in items:
        key = digest(normalised(compared(item.row, step.of)))
        if key in first:
            yield item, Removal("exact duplicate", of=first[key], similarity=1.0)
        else:
            first[key] = item.row.id
            yield item, None


class Neighbours(NamedTuple):
    """For each row the kept row that it is near to.

    Attributes:
        kept_row: Its index; -1 where the row itself is kept, (N,).
        similarity: To it, (N,).
    """

    kept_row: NDArray[np.int64]
    similarity: NDArray[np.float64]


def run_near(step: NearStep, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Yield each row; rows near to a better one are removed (see `NearStep`)."""
    method = step.method
    if method == "auto":
        method = "embedding" if len(items) <= step.max_embedded else "minhash"
    ranks = [rank(item, step) for item in items]
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    if method == "embedding":
        need_package("faiss", "the step `near` (method embedding)")
        vectors = context.embed([compared(item.row, step.of) for item in items], step.encoder)
        found = near_by_cosine(vectors[order], threshold=step.threshold)
        context.facts |= {"method": f"embedding ({step.encoder})", "threshold": step.threshold}
    else:
        need_package("datasketch", "the step `near` (method minhash)")
        found = near_by_minhash(items, order, step, context)
        context.facts |= {"method": "minhash", "threshold": step.jaccard}
    names = [item.row.id for item in items]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    for at, item in zip(place, items, strict=True):
        partner = int(found.kept_row[at])
        if partner < 0:
            yield item, None
        else:
            of, similarity = names[order[partner]], float(found.similarity[at])
            yield item, Removal("near duplicate", of=of, similarity=similarity)


def rank(item: Item, step: NearStep) -> tuple[int, bytes]:
    """Return what rows are sorted by, the best first."""
    return -min(item.answer_tokens, step.prefer_up_to), digest(compared(item.row, "row"))


def near_by_cosine(vectors: Vectors, *, threshold: float) -> Neighbours:
    """Take rows in order; one is removed if its cosine to a kept row reaches the threshold.

    So no two kept rows are near, and each removed row is near to a kept one. The search is exact
    (FAISS IndexFlatIP, Johnson et al. 2017), in products of blocks.

    Args:
        vectors: Of length 1, best row first, (N, D).
        threshold: Cosine.
    """
    import faiss

    count = len(vectors)
    kept_row = np.full(count, -1, np.int64)
    similarity = np.zeros(count, np.float64)
    index = faiss.IndexFlatIP(vectors.shape[1])
    kept: NDArray[np.int64] = np.empty(0, np.int64)
    for start in range(0, count, BLOCK):
        block = vectors[start : start + BLOCK]
        size = len(block)
        here = kept_row[start : start + size]
        value = similarity[start : start + size]
        if index.ntotal:
            cosines, nearest = index.search(block, 1)
            hit = cosines[:, 0] >= threshold
            here[hit], value[hit] = kept[nearest[hit, 0]], cosines[hit, 0]
        within = block @ block.T
        for i in range(size):
            if here[i] < 0:
                later = np.flatnonzero((within[i] >= threshold) & (here < 0))
                later = later[later > i]
                here[later], value[later] = start + i, within[i, later]
        fresh = np.flatnonzero(here < 0)
        index.add(np.ascontiguousarray(block[fresh]))
        kept = np.concatenate((kept, start + fresh))
    # Rounding may put the cosine of equal texts a little above 1.
    return Neighbours(kept_row, np.minimum(similarity, 1.0))


def nearest_by_cosine(
    vectors: Vectors, others: Vectors
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return of each vector the place of the nearest among others, and its cosine, (N,) each.

    Args:
        vectors: Of length 1, (N, D).
        others: Of length 1, at least one, (M, D).
    """
    import faiss

    index = faiss.IndexFlatIP(others.shape[1])
    index.add(others)
    cosines, nearest = index.search(vectors, 1)
    return nearest[:, 0], np.minimum(cosines[:, 0].astype(np.float64), 1.0)


def near_by_minhash(
    items: ItemFile, order: Sequence[int], step: NearStep, context: Context
) -> Neighbours:
    """Like `near_by_cosine`, with the Jaccard similarity of sets of 5-grams of characters.

    Similarities are estimated by MinHash and found by locality-sensitive hashing (Broder 1997;
    datasketch), so a near pair can be missed; a pair that is found is checked by its estimate.
    """
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    signatures: list[LeanMinHash] = []
    with context.screen.progress("minhash", len(items)) as advance:
        for item in items:
            one = MinHash(num_perm=PERMUTATIONS, seed=context.seed + 1, hashfunc=zlib.crc32)
            one.update_batch(shingles(compared(item.row, step.of)))
            signatures.append(LeanMinHash(one))
            advance(1)
    lsh = MinHashLSH(threshold=step.jaccard, num_perm=PERMUTATIONS)
    kept_row = np.full(len(order), -1, np.int64)
    similarity = np.zeros(len(order), np.float64)
    for place, number in enumerate(order):
        mine = signatures[number]
        # Of equally near rows the better one, so that the outcome does not hang on a set's order.
        near = sorted(
            (-float(mine.jaccard(signatures[order[other]])), other) for other in lsh.query(mine)
        )
        if near and -near[0][0] >= step.jaccard:
            kept_row[place], similarity[place] = near[0][1], -near[0][0]
        else:
            lsh.insert(place, mine)
    return Neighbours(kept_row, similarity)


def shingles(text: str) -> list[bytes]:
    """Return the distinct 5-grams of characters of a text, normalised."""
    plain = normalised(text)
    grams = {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}
    return [gram.encode() for gram in sorted(grams)]
