"""Keep a number of rows: those with the most of something, or those that differ the most.

Legend: N rows, D width of the encoder.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from taskfit.curate.context import Context, need_package
from taskfit.curate.embed import Vectors
from taskfit.curate.items import Item, ItemFile, Removal, Verdict, compared, digest
from taskfit.curate.settings import DiverseStep, TopStep
from taskfit.errors import DataError

ROUNDS = 20
# Covered rows that are compared in one product.
BLOCK = 256


def run_top(step: TopStep, items: ItemFile, _: Context) -> Iterator[Verdict]:
    """Yield each row; the k with the most are kept, of equal ones those of smaller hash."""
    sign = 1.0 if step.lowest else -1.0
    ranks = [(sign * _value(item, step), digest(compared(item.row, "row"))) for item in items]
    kept = set(sorted(range(len(ranks)), key=lambda i: (*ranks[i], i))[: step.k])
    for number, item in enumerate(items):
        if number in kept:
            yield item, None
        else:
            detail = f"{step.by} {_value(item, step):g}"
            yield item, Removal(f"not among the {step.k:,} first by {step.by}", detail=detail)


def _value(item: Item, step: TopStep) -> float:
    if step.by == "score":
        if item.row.score is None:
            raise DataError(
                f"top: {item.row.id} has no score. Name the column of the scores "
                "(--column score=NAME), or sort by answer_tokens or tokens."
            )
        return item.row.score
    return float(item.tokens if step.by == "tokens" else item.answer_tokens)


def run_diverse(step: DiverseStep, items: ItemFile, context: Context) -> Iterator[Verdict]:
    """Yield each row; k that differ are kept."""
    texts = [compared(item.row, step.of) for item in items]
    # Rows in the order of their hashes, so that ties do not depend on the order of files.
    order = sorted(range(len(texts)), key=lambda i: (digest(texts[i]), i))
    matrix = context.embed(texts, step.encoder)[order]
    if step.method == "k-center":
        chosen = k_center(matrix, step.k)
    else:
        need_package("faiss", "the step `diverse` (method k-means)")
        chosen = nearest_to_centres(matrix, step.k, seed=context.seed)
    kept = {order[i] for i in chosen}
    for number, item in enumerate(items):
        alike = f"not among the {step.k:,} most different by {step.of}"
        yield item, None if number in kept else Removal(alike)


def k_center(vectors: Vectors, k: int, *, covered: Vectors | None = None) -> NDArray[np.int64]:
    """Return k rows, each the farthest from those before it (Gonzalez 1985).

    The first is the farthest from all covered ones; where there are none, the row nearest to the
    mean of all.

    Args:
        vectors: Of length 1, (N, D).
        k: Rows to choose; all are chosen where there are no more.
        covered: Further rows that count as chosen before, (C, D).
    """
    if covered is None:
        covered = vectors[:0]
    if k >= len(vectors) and not len(covered):
        return np.arange(len(vectors))
    nearest = highest_cosine(vectors, covered)
    chosen = np.empty(min(k, len(vectors)), np.int64)
    for step in range(len(chosen)):
        if step == 0 and not len(covered):
            chosen[step] = int(np.argmax(vectors @ vectors.mean(axis=0)))
        else:
            chosen[step] = int(np.argmin(nearest))
        np.maximum(nearest, vectors @ vectors[chosen[step]], out=nearest)
        nearest[chosen[step]] = np.inf  # must not be chosen again
    return chosen


def highest_cosine(vectors: Vectors, others: Vectors) -> NDArray[np.float32]:
    """Return each row's cosine to the nearest of others, (N,); -inf where there are none.

    Args:
        vectors: Of length 1, (N, D).
        others: Of length 1, (C, D).
    """
    nearest = np.full(len(vectors), -np.inf, np.float32)
    for start in range(0, len(others), BLOCK):
        products = vectors @ others[start : start + BLOCK].T
        np.maximum(nearest, products.max(axis=1), out=nearest)
    return nearest


def nearest_to_centres(vectors: Vectors, k: int, *, seed: int) -> NDArray[np.int64]:
    """Return the row nearest to the centre of each of k clusters (spherical k-means, FAISS).

    Args:
        vectors: Of length 1, (N, D).
        k: Clusters; all rows are chosen where there are no more.
        seed: Of the first centres.

    Returns:
        k different rows: where two centres have the same nearest row, the second takes its next.
    """
    if k >= len(vectors):
        return np.arange(len(vectors))
    import faiss

    clusters = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    clusters.train(np.ascontiguousarray(vectors))
    centres = np.asarray(clusters.centroids, np.float32)
    taken = np.zeros(len(vectors), np.bool_)
    chosen = np.empty(k, np.int64)
    for number, centre in enumerate(centres):
        cosines = np.where(taken, -np.inf, vectors @ centre)
        chosen[number] = int(np.argmax(cosines))
        taken[chosen[number]] = True
    return chosen
