"""The procedure behind the published ERC tables of CR-FIQA (Boutros et al., CVPR 2023) and of those who reuse its code.

It differs from the ISO EDC: distances instead of similarities, all pairs are discarded (non-mated ones too), the
threshold is fitted again on the pairs that are kept, and the area is a trapezoid over 20 points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.edc import Curve, Floats

LIMIT = 0.95


def distance_ranks(similarity: Floats) -> NDArray[np.int64]:
    """(P,) ranks, 0 the smallest and equal for equal values, of the distances arccos(cosine) / pi."""
    distance = np.arccos(np.clip(similarity, -1.0, 1.0)) / np.pi
    return np.unique(distance, return_inverse=True)[1]


def refitted_fnmr(rank: NDArray[np.int64], mated: NDArray[np.bool_], fmr: float) -> float:
    """FNMR of the kept pairs at the kept distance whose FMR is nearest to the target, the largest one on ties.

    rank (P,): ranks of the distances. NaN when no mated or no non-mated pair is left.
    """
    size = int(rank.max()) + 1
    genuine = np.bincount(rank[mated], minlength=size)
    impostor = np.bincount(rank[~mated], minlength=size)
    genuine_count, impostor_count = genuine.sum(), impostor.sum()
    if genuine_count == 0 or impostor_count == 0:
        return float("nan")
    candidates = np.flatnonzero(genuine + impostor)[::-1]  # descending, so that argmin takes the largest on ties
    rates = np.cumsum(impostor)[candidates] / impostor_count  # impostor distance <= t
    chosen = candidates[np.argmin(np.abs(rates - fmr))]
    return float(1.0 - genuine[:chosen].sum() / genuine_count)  # genuine distance < t


def erc_curve(rank: NDArray[np.int64], mated: NDArray[np.bool_], order: NDArray[np.int64], fmr: float) -> Curve:
    """FNMR after discarding int(r * P) of all P pairs, r = 0, 0.05, ..., 0.95.

    rank, mated: (P,) in the order of the pair list. order (P,): worst quality first, ties by position (a stable sort).
    """
    rates = np.arange(0, 0.98, 0.05)
    kept = (order[int(rate * len(order)) :] for rate in rates)
    return Curve(rates, np.array([refitted_fnmr(rank[k], mated[k], fmr) for k in kept]))


def trapezoid_area(curve: Curve) -> float:
    """The published AUC: linear interpolation over [0, 0.95]."""
    return float(np.trapezoid(curve.fnmr, curve.discard))
