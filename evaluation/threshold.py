"""The quality threshold that discards a wanted share of captures, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.edc import Floats
from model.percentiles import discard_position

REPLICATES = 10_000


@dataclass(frozen=True)
class Threshold:
    """Images below `value` are discarded. The intervals hold 95 % of the bootstrap."""

    value: float
    discarded: int  # of the images that it was picked from
    images: int
    value_ci: tuple[float, float]
    share_ci: tuple[float, float]  # of what it will discard of new captures of the same kind


def pick_threshold(quality: Floats, discard: float, seed: int = 0) -> Threshold:
    """The highest quality that discards at most the share `discard`, in [0, 1), of these captures (N,), NaN left out.

    Captures at the threshold are kept, so that equal qualities may mean that fewer are discarded than wanted. Raises
    ValueError when no capture has a quality.
    """
    ascending = np.sort(quality[~np.isnan(quality)])
    count = len(ascending)
    if not count:
        raise ValueError("none of the captures has a quality")
    position = discard_position(count, discard)
    value = ascending[position]
    discarded = int(np.searchsorted(ascending, value))
    # A bootstrap without drawing: of N uniform draws from N sorted captures, the one at `position` is
    # capture floor(N * u), where u, the order statistic of N uniform numbers, follows a beta distribution.
    rng = np.random.default_rng(seed)
    values = ascending[(rng.beta(position + 1, count - position, REPLICATES) * count).astype(int)]
    shares = rng.beta(discarded + 1, count - discarded, REPLICATES)
    return Threshold(float(value), discarded, count, _interval(values), _interval(shares))


def _interval(replicates: Floats) -> tuple[float, float]:
    low, high = np.percentile(replicates, (2.5, 97.5)).tolist()
    return low, high
