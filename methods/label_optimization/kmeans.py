"""k-means (Lloyd's algorithm from a k-means++ start), for the few hundred images of one identity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rows = NDArray[np.floating]

ITERATIONS = 100
TINY = 1e-6  # squared distances of unit vectors below this are rounding


def k_means(rows: Rows, clusters: int, generator: np.random.Generator) -> Ints:
    """The cluster of each of n rows (n, D), which are of length 1: numbers from 0, at most `clusters` of them.

    With n or fewer rows than clusters each row is a cluster. Equal rows can make fewer clusters; none is ever empty.
    """
    if len(rows) <= clusters:
        return np.arange(len(rows))
    centres = rows[_spread(rows, clusters, generator)]
    assigned = np.full(len(rows), -1)
    for _ in range(ITERATIONS):
        # |row - centre|^2 = 1 - 2 row . centre + |centre|^2, so that one product of matrices finds the nearest centre
        distances = 1 - 2 * rows @ centres.T + np.square(centres).sum(axis=1)  # (n, k)
        nearest = distances.argmin(axis=1)
        _fill_empty(nearest, distances.min(axis=1), len(centres))
        if (nearest == assigned).all():
            break
        assigned = nearest
        member = (assigned == np.arange(len(centres))[:, None]).astype(rows.dtype)  # (k, n)
        centres = member @ rows / np.maximum(member.sum(axis=1, keepdims=True), 1)
    return np.unique(assigned, return_inverse=True)[1]


def _spread(rows: Rows, clusters: int, generator: np.random.Generator) -> list[int]:
    """Start rows by k-means++ (Arthur, Vassilvitskii, 2007): each new one with a probability that grows with the
    squared distance to the nearest one so far. Fewer where all rows equal a start row."""
    chosen = [int(generator.integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    while len(chosen) < clusters:
        nearest = np.minimum(nearest, 2 - 2 * (rows @ rows[chosen[-1]]))
        weight = np.where(nearest > TINY, nearest, 0).cumsum()
        if weight[-1] == 0:
            break
        chosen.append(int(np.searchsorted(weight, generator.random() * weight[-1], side="right")))
    return chosen


def _fill_empty(nearest: Ints, distance: Rows, clusters: int) -> None:
    """Give each empty cluster the row that is farthest from its centre, in place."""
    for empty in np.flatnonzero(np.bincount(nearest, minlength=clusters) == 0):
        farthest = distance.argmax()
        if distance[farthest] <= TINY:
            break
        nearest[farthest], distance[farthest] = empty, 0
