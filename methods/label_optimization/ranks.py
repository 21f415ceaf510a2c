"""Optimisation of quality labels by mated comparisons.

Babnik, Damer, Štruc, "Optimization-Based Improvement of Face Image Quality Assessment Techniques", IWBF 2023.

Every image has a base rank, its place among all images in ascending quality. Images of one identity are compared
across the clusters of that identity, and all such pairs are ranked by their similarity. The rank of a pair is given to
its worse image, the one of the lower base rank, since that one limits the similarity. An image moves from its base
rank towards the mean rank of its pairs by the share epsilon. The sorted qualities are then dealt out in the new order,
so that their histogram stays exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.baselines import unit
from evaluation.edc import Floats
from model.cores import available_cores

Ints = NDArray[np.int64]
Partner = Literal["random", "first"]

PAIRS_AT_ONCE = 200_000_000  # pairs in memory at a time, 8 bytes each
BLOCK_ELEMENTS = 1 << 20  # of the similarities, and of the pairs, that are computed at a time
KEY_BITS = 62  # of a similarity in [-1, 1] and a rank together, in an int64


@dataclass(frozen=True)
class Clustering:
    """N images sorted by identity, cluster and name: `order` (N,) are their rows. `clusters` (C + 1,) are the places in
    `order` where the clusters begin, then N; `identities` (I + 1,) are the first cluster of each identity, then C."""

    order: Ints
    clusters: Ints
    identities: Ints

    @property
    def pairs(self) -> int:
        """How many pairs an iteration compares: each image has one partner in each other cluster of its identity."""
        images = np.diff(self.clusters[self.identities])
        return int((images * (np.diff(self.identities) - 1)).sum())


@dataclass(frozen=True)
class Blend:
    """The outcome of an optimisation, for each image (N,): its base rank, its rank after blending, its new quality."""

    base_rank: Ints
    rank: Floats
    quality: Floats


def sort_into_clusters(names: Sequence[str], identities: Sequence[str], clusters: Sequence[str]) -> Clustering:
    """The clustering of N images, which does not depend on their order."""
    keys = list(zip(identities, clusters, names, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    cluster_starts: list[int] = []
    identity_starts: list[int] = []
    before: tuple[str | None, str | None] = (None, None)
    for place, row in enumerate(order):
        identity, cluster, _ = keys[row]
        if identity != before[0]:
            identity_starts.append(len(cluster_starts))
        if (identity, cluster) != before:
            cluster_starts.append(place)
        before = (identity, cluster)
    return Clustering(
        np.array(order), np.array([*cluster_starts, len(order)]), np.array([*identity_starts, len(cluster_starts)])
    )


def optimise(
    quality: Floats,
    embeddings: Callable[[Ints], NDArray[np.floating]],
    clustering: Clustering,
    epsilon: float = 0.001,
    iterations: int = 10,
    seed: int = 0,
    partner: Partner = "random",
    progress: Callable[[int], object] = lambda images: None,
) -> Blend:
    """Optimise the qualities (N,) of the images of a clustering.

    `embeddings` gives the embeddings (n, D), of any length but 0, of n rows. Each of the `iterations` pairs the images
    anew, with a `random` member of each other cluster or with the `first`, whose name is the lowest, and the blended
    ranks are averaged. `progress` is told how many images are paired: N in each of the `distinct_iterations`.
    """
    count = len(quality)
    by_rank = np.argsort(quality, kind="stable")  # rank -> row
    base_rank = np.empty(count, np.int64)
    base_rank[by_rank] = np.arange(count)
    iterations = distinct_iterations(clustering, iterations, partner)
    generators = [np.random.default_rng((seed, iteration)) for iteration in range(iterations)]
    step = max(1, PAIRS_AT_ONCE // max(1, clustering.pairs))
    total: Floats = np.zeros(count)
    for start in range(0, iterations, step):
        part = generators[start : start + step]
        keys = pair_keys(embeddings, clustering, base_rank, part, partner, progress)
        for mean in _mean_ranks(keys, count):
            total += blend(mean, epsilon)
    blended = total / iterations
    result: Floats = np.empty(count)
    result[by_rank[np.argsort(blended, kind="stable")]] = quality[by_rank]
    return Blend(base_rank, blended[base_rank], result)


def distinct_iterations(clustering: Clustering, iterations: int, partner: Partner) -> int:
    """How many iterations to compute: 1 where nothing is drawn, since all are the same then."""
    singletons = len(clustering.clusters) - 1 == len(clustering.order)
    return 1 if partner == "first" or singletons else iterations


def blend(mean_pair_rank: Floats, epsilon: float) -> Floats:
    """Ranks (N,) by base rank: each base rank, moved by the share epsilon towards its mean pair rank, where it has one
    (it is not NaN)."""
    base: Floats = np.arange(len(mean_pair_rank), dtype=np.float64)
    moved = base + epsilon * (mean_pair_rank - base)
    return np.where(np.isnan(mean_pair_rank), base, moved)


def mean_pair_ranks(keys: Ints, count: int) -> Floats:
    """The mean rank of the pairs that each base rank was given (count,), NaN for none; keys (P,), sorted in place.

    The rank of a pair is its place in ascending similarity.
    """
    keys.sort()
    receiver = keys & ((1 << _rank_bits(count)) - 1)
    sums = np.bincount(receiver, np.arange(len(keys), dtype=np.float64), count)
    times = np.bincount(receiver, minlength=count)
    return np.divide(sums, times, out=np.full(count, np.nan), where=times > 0)


def pair_keys(
    embeddings: Callable[[Ints], NDArray[np.floating]],
    clustering: Clustering,
    base_rank: Ints,
    generators: Sequence[np.random.Generator],
    partner: Partner,
    progress: Callable[[int], object] = lambda images: None,
) -> Ints:
    """The pairs (T, P) of T iterations, each a number that sorts by similarity and ends in the rank of its receiver.

    A pair's upper bits are its cosine in fixed point, with a resolution of 4e-13 for a million images; its lower bits
    are the base rank of its worse image. So one sort of plain numbers ranks the pairs, and equal cosines have an order
    that no sorting algorithm changes.
    """
    bits = _rank_bits(len(base_rank))
    scale = 2.0 ** (KEY_BITS - bits)
    keys = np.empty((len(generators), clustering.pairs), np.int64)
    done = 0
    for first, last in pairwise(clustering.identities.tolist()):
        starts = clustering.clusters[first : last + 1]
        rows = clustering.order[starts[0] : starts[-1]]
        if last - first > 1:  # else no other cluster
            vectors = unit(embeddings(rows))
            ranks = base_rank[rows]
            for part, partners in _partners(starts - starts[0], generators, partner):
                cosines = vectors[part] @ vectors.T  # (n, N_identity)
                places = np.arange(len(cosines))[:, None] * cosines.shape[1] + partners
                similarity = cosines.ravel().take(places)  # (T, n, K - 1); flat places are the quickest way
                receiver = np.minimum(ranks[part, None], ranks[partners])
                key = np.rint(similarity * scale).astype(np.int64) << bits | receiver
                size = key[0].size
                keys[:, done : done + size] = key.reshape(len(key), size)
                done += size
        progress(len(rows) * len(generators))
    return keys


def _partners(
    starts: Ints, generators: Sequence[np.random.Generator], partner: Partner
) -> Iterator[tuple[slice, Ints]]:
    """For the images of an identity, in blocks, their partners in each iteration and other cluster (T, n, K - 1).

    `starts` (K + 1,) are where the clusters begin, then the number of images.
    """
    sizes = np.diff(starts)
    count, clusters = int(starts[-1]), len(sizes)
    own = np.repeat(np.arange(clusters), sizes)
    block = max(1, BLOCK_ELEMENTS // max(count, clusters * len(generators)))
    for part in (slice(start, start + block) for start in range(0, count, block)):
        others = (own[part, None] + np.arange(1, clusters)) % clusters  # (n, K - 1)
        members: Ints = np.zeros((len(generators), *others.shape), np.int64)
        if partner == "random":
            for member, generator in zip(members, generators, strict=True):
                draws = generator.integers(1 << 32, size=others.shape, dtype=np.uint32).astype(np.int64)
                member[:] = draws * sizes[others] >> 32  # in [0, size)
        yield part, starts[others] + members


def _mean_ranks(keys: Ints, count: int) -> list[Floats]:
    """`mean_pair_ranks` of each iteration; numpy lets go of the interpreter's lock while it sorts."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(lambda part: mean_pair_ranks(part, count), keys))


def _rank_bits(count: int) -> int:
    return max(1, (count - 1).bit_length())
