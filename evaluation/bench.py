"""Every method under every FR model at every FMR target: the rows of `results.json` and the curves behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from evaluation import cr_fiqa
from evaluation.bootstrap import interval, relative_areas
from evaluation.edc import (
    Curve,
    Floats,
    allowed_false_matches,
    best_area,
    discard_order,
    edc_curve,
    fixed_threshold,
    partial_area,
    relative_area,
)
from evaluation.embeddings import Embeddings, pair_similarities
from evaluation.names import match_names
from evaluation.pairs import Pairs, identities


class Result(TypedDict):
    """One method under one FR model at one FMR target and limit; None where the pairs are too few for a value."""

    method: str
    fr: str
    fmr: float
    limit: float
    threshold: float | None
    fnmr0: float | None
    errors: int | None
    pauc: float | None
    pauc_relative: float | None  # pauc / (fnmr0 * limit); None when there was no error at the start
    pauc_minus_best: float | None
    pauc_relative_ci: list[float] | None
    resolvable: bool


Setting = tuple[str, str, float]  # method, FR model, FMR target


@dataclass(frozen=True)
class Outcome:
    results: list[Result]
    curves: dict[Setting, Curve]
    replicates: list[Floats]  # of each result, (R,) relative pAUC of the bootstrap; NaN where there is none


@dataclass(frozen=True)
class Bootstrap:
    """How many replicates, from which seed; 0 replicates give no interval."""

    replicates: int = 1000
    seed: int = 0


def image_quality(pairs: Pairs, scores: Mapping[str, float], source: str) -> Floats:
    """(N,) quality of each image of the pairs; an image without an `ok` score counts as the worst, -inf.

    Raises MatchError for images that are not in the table.
    """
    quality = np.fromiter(scores.values(), np.float64)[match_names(pairs.names, list(scores), source)]
    return np.where(np.isnan(quality), -np.inf, quality)


def similarities(pairs: Pairs, embeddings: Embeddings, source: str) -> Floats:
    """(P,) cosine of each pair. Raises MatchError for images without an embedding."""
    row = match_names(pairs.names, embeddings.names, source)
    return pair_similarities(embeddings.rows, row[pairs.first], row[pairs.second])


def require_both_kinds(pairs: Pairs) -> None:
    """Raise ValueError when mated or non-mated pairs are absent: there is no FNMR or no threshold then."""
    mated = int(pairs.mated.sum())
    if mated == 0 or mated == len(pairs.mated):
        raise ValueError(f"the list holds {mated} mated pairs of {len(pairs.mated)}; an EDC needs mated and non-mated")


def iso(
    pairs: Pairs,
    qualities: Mapping[str, Floats],
    similarity: Mapping[str, Floats],
    fmrs: Sequence[float],
    limits: Sequence[float],
    bootstrap: Bootstrap,
) -> Outcome:
    """The threshold is fixed from all non-mated pairs; mated pairs are discarded by the minimum of their qualities.

    qualities: method -> (N,) of the images. similarity: FR model -> (P,) of the pairs.
    """
    require_both_kinds(pairs)
    outcome = Outcome([], {}, [])
    mated = pairs.mated
    first, second = pairs.first[mated], pairs.second[mated]
    identity = identities(pairs)[first] if bootstrap.replicates else np.empty(0, np.int64)
    genuine = {fr: values[mated] for fr, values in similarity.items()}
    impostor = {fr: np.sort(values[~mated])[::-1] for fr, values in similarity.items()}
    for method, quality in qualities.items():
        ordered = discard_order(np.minimum(quality[first], quality[second]))
        for fr, fmr in ((fr, fmr) for fr in similarity for fmr in fmrs):
            if allowed_false_matches(fmr, len(impostor[fr])) < 1:
                outcome.results.extend(_unresolvable(method, fr, fmr, limit) for limit in limits)
                outcome.replicates.extend(np.full((len(limits), bootstrap.replicates), np.nan))
                continue
            threshold = fixed_threshold(impostor[fr], fmr)
            errors = genuine[fr] < threshold
            curve = edc_curve(ordered, errors)
            areas = np.empty((len(limits), 0))
            if bootstrap.replicates:
                areas = relative_areas(ordered, errors, identity, limits, bootstrap.replicates, bootstrap.seed)
            outcome.curves[method, fr, fmr] = curve
            outcome.replicates.extend(areas)
            for limit, values in zip(limits, areas, strict=True):
                area, count, ci = partial_area(curve, limit), int(errors.sum()), interval(values)
                outcome.results.append(_result(method, fr, fmr, limit, threshold, curve, count, area, ci))
    return outcome


def cr_fiqa_procedure(
    pairs: Pairs, qualities: Mapping[str, Floats], similarity: Mapping[str, Floats], fmrs: Sequence[float]
) -> Outcome:
    """The procedure of the published ERC tables; arguments as for `iso`. There are no intervals."""
    require_both_kinds(pairs)
    outcome = Outcome([], {}, [])
    genuine_count = int(pairs.mated.sum())
    ranks = {fr: cr_fiqa.distance_ranks(values) for fr, values in similarity.items()}
    for method, quality in qualities.items():
        order = np.argsort(np.minimum(quality[pairs.first], quality[pairs.second]), kind="stable")
        for fr, fmr in ((fr, fmr) for fr in similarity for fmr in fmrs):
            if allowed_false_matches(fmr, len(pairs.mated) - genuine_count) < 1:
                outcome.results.append(_unresolvable(method, fr, fmr, cr_fiqa.LIMIT))
                continue
            curve = cr_fiqa.erc_curve(ranks[fr], pairs.mated, order, fmr)
            area, count = cr_fiqa.trapezoid_area(curve), round(curve.fnmr[0] * genuine_count)
            outcome.curves[method, fr, fmr] = curve
            outcome.results.append(_result(method, fr, fmr, cr_fiqa.LIMIT, None, curve, count, area, None))
    return outcome


def _result(
    method: str,
    fr: str,
    fmr: float,
    limit: float,
    threshold: float | None,
    curve: Curve,
    errors: int,
    area: float,
    ci: list[float] | None,
) -> Result:
    fnmr0 = float(curve.fnmr[0])
    return Result(
        method=method,
        fr=fr,
        fmr=fmr,
        limit=limit,
        threshold=threshold,
        fnmr0=fnmr0,
        errors=errors,
        pauc=_finite(area),
        pauc_relative=_finite(relative_area(area, fnmr0, limit)),
        pauc_minus_best=_finite(area - best_area(fnmr0, limit)),
        pauc_relative_ci=ci,
        resolvable=True,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unresolvable(method: str, fr: str, fmr: float, limit: float) -> Result:
    return Result(
        method=method,
        fr=fr,
        fmr=fmr,
        limit=limit,
        threshold=None,
        fnmr0=None,
        errors=None,
        pauc=None,
        pauc_relative=None,
        pauc_minus_best=None,
        pauc_relative_ci=None,
        resolvable=False,
    )
