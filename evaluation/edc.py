"""Error-versus-Discard Characteristic of false non-matches (FNM-EDC).

ISO/IEC 29794-1:2024; Schlett, Rathgeb, Tapia, Busch, "Considerations on the Evaluation of Biometric Quality Assessment
Algorithms" (arXiv 2303.13294). A pair matches when its similarity s >= t, and a mated pair with s < t is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A step function: `fnmr[i]` holds from `discard[i]` up to `discard[i + 1]`, the last value up to 1."""

    discard: Floats  # (K,) fractions of the mated pairs, ascending from 0, one for each distinct pair quality
    fnmr: Floats  # (K,) in [0, 1]


def allowed_false_matches(fmr: float, nonmated_count: int) -> int:
    """The largest k with k / nonmated_count <= fmr; below 1 the pairs cannot resolve this FMR."""
    count = int(fmr * nonmated_count) + 1
    while count > 0 and count / nonmated_count > fmr:  # the product may be rounded to either side of an integer
        count -= 1
    return count


def fixed_threshold(nonmated_descending: Floats, fmr: float) -> float:
    """The smallest real t with FMR(t) <= fmr, from all non-mated similarities sorted from the largest to the smallest.

    It lies just above the (k+1)-th largest similarity. Raises ValueError when fmr is not inside (0, 1).
    """
    if not 0 < fmr < 1:
        raise ValueError(f"an FMR target lies between 0 and 1, not {fmr:g}")
    count = allowed_false_matches(fmr, len(nonmated_descending))
    return float(np.nextafter(nonmated_descending[count], np.inf))


@dataclass(frozen=True)
class DiscardOrder:
    """Mated pairs in the order of discarding, worst first; equal qualities form one run and go at once."""

    order: NDArray[np.int64]  # (M,) indices of the mated pairs
    starts: NDArray[np.int64]  # (K,) position in `order` of the first pair of each run


def discard_order(quality: Floats) -> DiscardOrder:
    """Sort pair qualities (M,) once for every threshold and every bootstrap replicate; -inf is the worst."""
    order = np.argsort(quality, kind="stable")
    ascending = quality[order]
    starts = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
    return DiscardOrder(order, starts)


def edc_curve(ordered: DiscardOrder, errors: NDArray[Any], weights: NDArray[Any] | None = None) -> Curve:
    """FNMR of the mated pairs that are kept, for each quality at which discarding may stop.

    errors (M,): False non-matches, or for each pair the share of FR models under which it is one. weights (M,): how
    often each pair counts (the bootstrap); 1 by default.
    """
    wrong = errors[ordered.order].astype(np.float64)
    if weights is None:
        weights = np.ones_like(wrong)
    else:
        weights = weights[ordered.order]
        wrong *= weights
    # totals of the pairs discarded before each run; sums of False non-matches are exact, those of shares nearly so
    before = np.concatenate(([0.0], np.cumsum(weights)))[ordered.starts]
    wrong_before = np.concatenate(([0.0], np.cumsum(wrong)))[ordered.starts]
    total, wrong_total = weights.sum(), wrong.sum()
    kept = before < total  # only a bootstrap replicate can have runs of weight 0 at the end
    return Curve(before[kept] / total, (wrong_total - wrong_before[kept]) / (total - before[kept]))


def partial_area(curve: Curve, limit: float) -> float:
    """pAUC: the exact area under the step function over the discard fractions [0, limit]."""
    edges = np.minimum(np.append(curve.discard, 1.0), limit)
    return float(np.sum(np.diff(edges) * curve.fnmr))


def best_area(fnmr0: float, limit: float) -> float:
    """Area under max(0, fnmr0 - x) over [0, limit], the theoretical best of Schlett et al.

    Perfect quality reaches (fnmr0 - x) / (1 - x), which lies slightly above it.
    """
    end = min(fnmr0, limit)
    return fnmr0 * end - end * end / 2


def relative_area(area: float, fnmr0: float, limit: float) -> float:
    """pAUC / (fnmr0 * limit): 1.0 is useless, lower is better; NaN when nothing was wrong at the start."""
    return area / (fnmr0 * limit) if fnmr0 > 0 else float("nan")
