"""Bands of quality from measured false non-matches: the lowest quality from which recognition fails rarely enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bench import Bootstrap, require_both_kinds
from evaluation.bootstrap import drawn_identities, interval
from evaluation.edc import (
    DiscardOrder,
    Floats,
    allowed_false_matches,
    discard_order,
    edc_curve,
    fixed_threshold,
)
from evaluation.pairs import Pairs, identities
from model.bands import BANDS, Bands, MeasuredBand

RULE_OF_THREE = 3  # pairs without any error: the rate lies below 3 / pairs with 95 % confidence


def measure_bands(
    pairs: Pairs,
    quality: Floats,
    similarity: Mapping[str, Floats],
    fmr: float,
    wanted: Sequence[float],
    bootstrap: Bootstrap,
) -> list[MeasuredBand]:
    """Where medium and high begin, and the errors that were measured in each band.

    quality: (N,) of the images; a pair counts with the worse of its two. similarity: FR model -> (P,) of the pairs; the
    threshold of each is fixed at `fmr` over all non-mated pairs. The errors are means over the FR models. wanted: the
    FNMR that the pairs with both images in medium or high, and in high, may have. Raises ValueError when the pairs
    cannot resolve `fmr` or a wanted rate.
    """
    require_both_kinds(pairs)
    if len(wanted) != 2 or not wanted[0] > wanted[1]:
        raise ValueError(f"two rates were expected, of medium and a lower one of high, not {list(wanted)}")
    mated = pairs.mated
    first, second = pairs.first[mated], pairs.second[mated]
    worse = np.minimum(quality[first], quality[second])
    errors = pair_errors(similarity, mated, fmr)
    ordered, identity = discard_order(worse), identities(pairs)[first]
    starts = [lowest_quality(ordered, worse, errors, rate) for rate in wanted]
    for rate, start in zip(wanted, starts, strict=True):
        if start is None:
            raise ValueError(unreachable(ordered, errors, rate))
    low = [-np.inf, *(float(start) for start in starts if start is not None)]
    band = np.searchsorted(low, worse, side="right") - 1  # (M,) 0, 1 or 2
    limits, inside, above = (np.full((bootstrap.replicates, len(BANDS)), np.nan) for _ in range(3))
    for row, weights in enumerate(drawn_identities(identity, bootstrap.replicates, bootstrap.seed)):
        limits[row, 1:] = [_or_nan(lowest_quality(ordered, worse, errors, rate, weights)) for rate in wanted]
        inside[row], above[row] = rates(band, errors, weights)
    fnmr, fnmr_above = rates(band, errors, np.ones(len(errors)))
    return [
        MeasuredBand(
            band=name,
            lowest=low[i] if i else None,
            lowest_ci=interval(limits[:, i]) if i else None,
            wanted=wanted[i - 1] if i else None,
            pairs=int(np.sum(band == i)),
            share=float(np.mean(band == i)),
            fnmr=_or_none(fnmr[i]),
            fnmr_ci=interval(inside[:, i]),
            fnmr_from=_or_none(fnmr_above[i]),
            fnmr_from_ci=interval(above[:, i]),
        )
        for i, name in enumerate(BANDS)
    ]


def pair_errors(similarity: Mapping[str, Floats], mated: NDArray[np.bool_], fmr: float) -> Floats:
    """(M,) for each mated pair the share of FR models under which it fails."""
    return np.mean([false_non_matches(values, mated, fmr) for values in similarity.values()], axis=0)


def false_non_matches(similarity: Floats, mated: NDArray[np.bool_], fmr: float) -> NDArray[np.bool_]:
    """(M,) whether each mated pair fails at the threshold that `fmr` fixes over the non-mated ones.

    Raises ValueError when these are too few.
    """
    impostor = np.sort(similarity[~mated])[::-1]
    if allowed_false_matches(fmr, len(impostor)) < 1:
        raise ValueError(f"FMR {fmr:g} needs {math.ceil(1 / fmr):,} non-mated pairs, the list has {len(impostor):,}")
    return similarity[mated] < fixed_threshold(impostor, fmr)


def lowest_quality(
    ordered: DiscardOrder, worse: Floats, errors: Floats, rate: float, weights: NDArray[Any] | None = None
) -> float | None:
    """The lowest pair quality from which the pairs have an FNMR of at most `rate`; None when there is none, or when
    fewer than 3 / rate pairs would be left, which could not show such a rate."""
    total = len(errors) if weights is None else weights.sum()
    curve = edc_curve(ordered, errors, weights)
    good = (curve.fnmr <= rate) & (total * (1 - curve.discard) >= RULE_OF_THREE / rate)
    if not good.any():
        return None
    run = int(good.argmax())
    return float(worse[ordered.order[ordered.starts[run]]])


def unreachable(ordered: DiscardOrder, errors: Floats, rate: float) -> str:
    """Why a wanted rate cannot be had from these pairs."""
    needed = math.ceil(RULE_OF_THREE / rate)
    curve = edc_curve(ordered, errors)
    enough = curve.fnmr[len(errors) * (1 - curve.discard) >= needed]
    if not len(enough):
        return f"an FNMR of {rate:g} can be shown with {needed:,} mated pairs or more; the list has {len(errors):,}"
    return f"no quality brings the FNMR to {rate:g} and keeps {needed:,} mated pairs; the lowest is {enough.min():.4g}"


def rates(band: NDArray[Any], errors: Floats, weights: NDArray[Any]) -> tuple[Floats, Floats]:
    """The FNMR inside each band, and in each band or above, (3,) each; NaN where there are no pairs."""
    size = len(BANDS)
    count, wrong = np.bincount(band, weights, size), np.bincount(band, weights * errors, size)
    with np.errstate(invalid="ignore"):
        return wrong / count, np.cumsum(wrong[::-1])[::-1] / np.cumsum(count[::-1])[::-1]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def as_lines(table: Bands) -> list[str]:
    """The table for the terminal."""
    lines = [f"{table.set}; FNMR at FMR {table.fmr:g}, mean over {', '.join(table.fr)}"]
    for one in table.measured:
        begins = "the lowest" if one.lowest is None else f"{one.lowest} {_range(one.lowest_ci)}"
        fnmr = "none" if one.fnmr is None else f"{one.fnmr:.4f} {_range(one.fnmr_ci)}"
        lines.append(f"{one.band:6}  from {begins}: {one.pairs} pairs ({one.share:.1%}), FNMR {fnmr}")
    return lines


def _range(ci: Sequence[float] | None) -> str:
    return f"[{ci[0]:.4f}, {ci[1]:.4f}]" if ci else "[no interval]"
