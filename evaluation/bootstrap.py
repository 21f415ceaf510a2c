"""Intervals by resampling identities, not pairs: the pairs of one person are not independent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.edc import DiscardOrder, Floats, edc_curve, partial_area, relative_area


def relative_areas(
    ordered: DiscardOrder,
    errors: NDArray[np.bool_],
    identity: NDArray[np.int64],
    limits: Sequence[float],
    replicates: int,
    seed: int,
) -> Floats:
    """Replicates of the relative pAUC at a fixed threshold, (limits, replicates); NaN in one that drew no error.

    errors, identity: (M,) of the mated pairs.
    """
    values = np.empty((replicates, len(limits)))
    for row, weights in zip(values, drawn_identities(identity, replicates, seed), strict=True):
        curve = edc_curve(ordered, errors, weights)
        row[:] = [relative_area(partial_area(curve, limit), curve.fnmr[0], limit) for limit in limits]
    return values.T


def drawn_identities(identity: NDArray[np.int64], replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each pair (M,) counts in each replicate: as many identities as there are, drawn with replacement.

    The draws depend on the seed and on how many pairs each identity has: methods, FR models and a damaged copy of the
    same set see equal replicates, so that their differences are paired; sets of other people are drawn on their own.
    """
    people, person, counts = np.unique(identity, return_inverse=True, return_counts=True)
    rng = np.random.default_rng((seed, *counts.tolist()))
    for _ in range(replicates):
        yield np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people))[person]


def interval(replicates: Floats) -> list[float] | None:
    """The 95 % percentile interval [low, high] of replicates (R,), NaN left out; None when nothing is left."""
    known = replicates[~np.isnan(replicates)]
    return np.percentile(known, (2.5, 97.5)).tolist() if len(known) else None
