"""Strategies of active learning: which texts of a pool to label next, by the names of the papers.

Legend: N texts of the pool, L labels (of several questions those of all, side by side), M width of
the sentence embeddings, K labelled texts, k texts that are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import entropy as shannon_entropy
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from taskfit.curate.select import k_center

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
Vectors = NDArray[np.float32]

ONE_QUESTION: Mapping[str, slice] = MappingProxyType({"": slice(None)})
# Texts of the smallest margins that cluster-margin chooses among: so many times k, and at most.
CANDIDATES, MOST_CANDIDATES = 10, 8_000
# Of TypiClust, as in the paper's code: clusters, texts of one, neighbours that measure typicality.
MOST_CLUSTERS, FEWEST_OF_CLUSTER, NEIGHBOURS = 500, 5, 20
EXACT_CLUSTERS = 50


@dataclass(frozen=True, slots=True)
class Pool:
    """What strategies see of the texts that may be labelled.

    Attributes:
        size: How many there are, N.
        probabilities: Of the labels, (N, L); None where there is no model yet.
        vectors: Sentence embeddings of length 1, (N, M); None where a strategy reads none.
        labelled: Those of the texts that are labelled already, (K, M); None without any.
        questions: Question -> which labels are its own.
        multi_label: Whether a text may have several labels, each judged by itself.
    """

    size: int
    probabilities: FloatArray | None = None
    vectors: Vectors | None = None
    labelled: Vectors | None = None
    questions: Mapping[str, slice] = field(default_factory=lambda: ONE_QUESTION)
    multi_label: bool = False

    def take(self, places: IntArray) -> "Pool":
        """Return the pool of some of its texts."""
        return replace(
            self,
            size=len(places),
            probabilities=None if self.probabilities is None else self.probabilities[places],
            vectors=None if self.vectors is None else self.vectors[places],
        )

    @property
    def need_probabilities(self) -> FloatArray:
        """Return the probabilities of a strategy that reads them."""
        assert self.probabilities is not None, "a strategy that reads probabilities got none"
        return self.probabilities

    @property
    def need_vectors(self) -> Vectors:
        """Return the embeddings of a strategy that reads them."""
        assert self.vectors is not None, "a strategy that reads embeddings got none"
        return self.vectors


Choose = Callable[[Pool, int, np.random.Generator], IntArray]
Score = Callable[[FloatArray, bool], FloatArray]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to choose.

    Attributes:
        choose: Returns k of the pool's texts, in the order to label them in, given pool, k and a
            generator.
        why: What is said of a text that it chose.
        reads_probabilities: Whether it needs a model.
        reads_vectors: Whether it needs embeddings of the pool.
        score: Where it chooses among the texts that come first by a score: which.
    """

    choose: Choose
    why: str
    reads_probabilities: bool = True
    reads_vectors: bool = True
    score: Score | None = None


def least_confidence(probabilities: FloatArray, multi_label: bool) -> FloatArray:
    """Return 1 less the probability of the likeliest label, (N,) (Lewis and Gale 1994).

    Where each label is judged by itself, it is the mean over labels.
    """
    if multi_label:
        return np.asarray(np.minimum(probabilities, 1 - probabilities).mean(axis=1))
    return np.asarray(1 - probabilities.max(axis=1))


def margin(probabilities: FloatArray, multi_label: bool) -> FloatArray:
    """Return 1 less the lead of the likeliest label over the next, (N,) (Scheffer et al. 2001).

    Where each label is judged by itself, it is the label with the smallest lead that counts.
    """
    if multi_label:
        return np.asarray(1 - np.abs(2 * probabilities - 1).min(axis=1))
    if probabilities.shape[1] < 2:
        return 1 - probabilities[:, 0]
    first_two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return 1 - (first_two[:, 1] - first_two[:, 0])


def entropy(probabilities: FloatArray, multi_label: bool) -> FloatArray:
    """Return the entropy of the labels, (N,), in nats (Settles 2009, section 3.1).

    Where each label is judged by itself, it is the sum over labels.
    """
    if multi_label:
        both = np.stack((probabilities, 1 - probabilities))
        return np.asarray(shannon_entropy(both, axis=0).sum(axis=1))
    return np.asarray(shannon_entropy(probabilities, axis=1))


def uncertainty(pool: Pool, score: Score) -> FloatArray:
    """Return how uncertain each text is, (N,); of several questions their mean."""
    found = pool.need_probabilities
    parts = [score(found[:, own], pool.multi_label) for own in pool.questions.values()]
    return np.asarray(np.mean(parts, axis=0))


def most_uncertain(
    pool: Pool, count: int, generator: np.random.Generator, *, score: Score
) -> IntArray:
    """Return the most uncertain texts first; of equal ones any."""
    found = uncertainty(pool, score)
    return np.lexsort((generator.random(len(found)), -found))[:count]


def _by(score: Score) -> Strategy:
    def choose(pool: Pool, count: int, generator: np.random.Generator) -> IntArray:
        return most_uncertain(pool, count, generator, score=score)

    return Strategy(choose, "uncertain", reads_vectors=False, score=score)


def at_random(pool: Pool, count: int, generator: np.random.Generator) -> IntArray:
    """Return texts drawn at random."""
    return generator.permutation(pool.size)[:count]


def core_set(pool: Pool, count: int, _: np.random.Generator) -> IntArray:
    """Return texts each of which is the farthest from all labelled and chosen ones.

    The greedy k-center of Sener and Savarese (2018), algorithm 1, over cosines.
    """
    return k_center(pool.need_vectors, count, covered=pool.labelled)


def cluster_margin(pool: Pool, count: int, generator: np.random.Generator) -> IntArray:
    """Return texts of small margins from as many clusters as possible.

    Cluster-Margin (Citovsky et al. 2021): the texts of the smallest margins, 10 times as many as
    are asked for, are clustered (average linkage over cosines), and the clusters give one text each
    in turn, small ones first. Unlike there, only these texts are clustered, not the whole pool, and
    a cluster gives its smallest margin first, not one at random.
    """
    num = min(CANDIDATES * count, max(MOST_CANDIDATES, count))
    places = most_uncertain(pool, num, generator, score=margin)
    if len(places) <= count:
        return places
    tree = linkage(pool.need_vectors[places].astype(np.float64), "average", metric="cosine")
    cluster = fcluster(tree, count, "maxclust")
    sizes = np.bincount(cluster)
    # The turn in which its cluster gives a text: places are in the order of their margins.
    turn, given = np.empty(len(places), np.intp), np.zeros(len(sizes), np.intp)
    for at, own in enumerate(cluster):
        turn[at] = given[own]
        given[own] += 1
    chosen = np.lexsort((np.arange(len(places)), sizes[cluster], turn))[:count]
    return places[np.sort(chosen)]


def badge(pool: Pool, count: int, generator: np.random.Generator) -> IntArray:
    """Return texts whose gradients are long and differ: k-means++ over gradient embeddings.

    BADGE (Ash et al. 2020, algorithm 1): the gradient of the cross-entropy of the likeliest label
    with respect to a linear layer over the embeddings, (p - y) outer h. Its inner products are
    those of the two factors multiplied, so no (N, L x M) matrix is made.
    """
    vectors, residuals = pool.need_vectors, _residuals(pool)
    lengths = (residuals**2).sum(axis=1) * (vectors**2).sum(axis=1)
    chosen = np.empty(min(count, len(vectors)), np.intp)
    distances = np.full(len(vectors), np.inf)
    is_left = np.ones(len(vectors), np.bool_)
    for step in range(len(chosen)):
        # The first is the longest, as in the paper's code.
        weights = np.where(is_left, np.maximum(lengths if step == 0 else distances, 0), 0)
        total = weights.sum()
        if step == 0 and total > 0:
            place = int(weights.argmax())
        elif total > 0:
            place = int(generator.choice(len(weights), p=weights / total))
        else:
            place = int(generator.choice(np.flatnonzero(is_left)))
        chosen[step], is_left[place] = place, False
        products = (residuals @ residuals[place]) * (vectors @ vectors[place])
        np.minimum(distances, lengths + lengths[place] - 2 * products, out=distances)
    return chosen


def _residuals(pool: Pool) -> Vectors:
    """Return the probabilities less the answers that they give, (N, L)."""
    found = pool.need_probabilities
    answers = np.zeros_like(found)
    if pool.multi_label:
        answers[found >= 0.5] = 1
    else:
        rows = np.arange(len(found))
        for own in pool.questions.values():
            answers[:, own][rows, found[:, own].argmax(axis=1)] = 1
    return (found - answers).astype(np.float32)


def typiclust(pool: Pool, count: int, generator: np.random.Generator) -> IntArray:
    """Return the most typical text of each of the largest clusters that have no label yet.

    TypiClust (Hacohen et al. 2022, algorithm 1): k-means with a cluster for each labelled text and
    each that is asked for, up to 500. Typicality is the inverse of the mean distance to the 20
    nearest texts of the cluster.
    """
    vectors = pool.need_vectors
    own = vectors if pool.labelled is None else np.vstack([vectors, pool.labelled])
    num = min(len(own) - len(vectors) + count, MOST_CLUSTERS, len(own))
    seed = int(generator.integers(2**31))
    # Many clusters are found in batches; k-means++ would take longer to begin than all the rest.
    few = KMeans(num, n_init=1, random_state=seed)
    many = MiniBatchKMeans(num, init="random", n_init=1, random_state=seed)
    with threadpool_limits(1):
        found = (few if num <= EXACT_CLUSTERS else many).fit(own)
    cluster = found.labels_[: len(vectors)]
    taken = np.bincount(found.labels_[len(vectors) :], minlength=num)
    left = {int(c): np.flatnonzero(cluster == c) for c in np.unique(cluster)}
    chosen: list[int] = []
    while len(chosen) < count and left:
        large = [c for c in left if len(left[c]) >= FEWEST_OF_CLUSTER] or list(left)
        one = min(large, key=lambda c: (taken[c], -len(left[c]), c))
        place = int(left[one][_most_typical(vectors[left[one]])])
        chosen.append(place)
        taken[one] += 1
        left[one] = left[one][left[one] != place]
        if not len(left[one]):
            del left[one]
    return np.array(chosen, np.intp)


def _most_typical(vectors: Vectors) -> int:
    """Return the text with the least mean distance to its nearest neighbours."""
    num = min(NEIGHBOURS, max(1, len(vectors) // 2))
    if len(vectors) == 1:
        return 0
    distances, _ = NearestNeighbors(n_neighbors=num + 1).fit(vectors).kneighbors(vectors)
    return int(distances[:, 1:].mean(axis=1).argmin())


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "random": Strategy(at_random, "random", reads_probabilities=False, reads_vectors=False),
        "least_confidence": _by(least_confidence),
        "margin": _by(margin),
        "entropy": _by(entropy),
        "cluster-margin": Strategy(cluster_margin, "uncertain and different", score=margin),
        "badge": Strategy(badge, "uncertain and different"),
        "k-center": Strategy(core_set, "different", reads_probabilities=False),
        "typiclust": Strategy(typiclust, "typical", reads_probabilities=False),
    }
)


def names_without_model() -> Sequence[str]:
    """Return the strategies that need no run."""
    return [name for name, one in STRATEGIES.items() if not one.reads_probabilities]
