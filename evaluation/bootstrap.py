"""Intervals by resampling identities, not pairs: the pairs of one person are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.edc import DiscardOrder, Floats, edc_curve, partial_area, relative_area


def identity_intervals(
    ordered: DiscardOrder,
    errors: NDArray[np.bool_],
    identity: NDArray[np.int64],
    limits: Sequence[float],
    replicates: int,
    seed: int,
) -> Floats:
    """The 95 % percentile interval of the relative pAUC at a fixed threshold, (limits, 2).

    errors, identity: (M,) of the mated pairs. Each replicate draws as many identities as there are, with replacement;
    equal seeds draw equal identities, so that methods see the same replicates. NaN where nothing ever was wrong.
    """
    people, person = np.unique(identity, return_inverse=True)
    rng = np.random.default_rng(seed)
    values = np.full((replicates, len(limits)), np.nan)
    for row in values:
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people))
        curve = edc_curve(ordered, errors, drawn[person])
        row[:] = [relative_area(partial_area(curve, limit), curve.fnmr[0], limit) for limit in limits]
    values = values[~np.isnan(values).any(axis=1)]  # replicates without an error have no relative area
    return np.percentile(values, (2.5, 97.5), axis=0).T if len(values) else np.full((len(limits), 2), np.nan)
