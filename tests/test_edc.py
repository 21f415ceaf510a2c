"""EDC and CR-FIQA's procedure against published numbers, brute force and what must hold for any data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import cr_fiqa
from evaluation.bootstrap import interval, relative_areas
from evaluation.edc import (
    allowed_false_matches,
    best_area,
    discard_order,
    edc_curve,
    fixed_threshold,
    partial_area,
    relative_area,
)

METHODS = ("GOOD", "TIED", "RANDOM")
LIMITS = (0.2, 0.3, 0.4)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "evaluation/expected.npz") as arrays_:
        return dict(arrays_)


def pair_quality(golden: Path, expected: dict[str, np.ndarray], method: str) -> np.ndarray:
    lines = (golden / f"evaluation/quality_data/SYN/{method}_SYN.txt").read_text().splitlines()
    quality = np.array([float(line.split()[1]) for line in lines])
    return quality[expected["pair_index"][:, :2]].min(axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fmr", [0.01, 0.001])
def test_iso_is_the_golden_curve(golden: Path, expected: dict[str, np.ndarray], method: str, fmr: float) -> None:
    mated = expected["pair_index"][:, 2] == 1
    similarity = expected["similarity"]
    threshold = fixed_threshold(np.sort(similarity[~mated])[::-1], fmr)
    curve = edc_curve(discard_order(pair_quality(golden, expected, method)[mated]), similarity[mated] < threshold)
    prefix = f"edc/smallest/fmr{fmr:g}"
    assert threshold == expected[f"{prefix}/threshold"]
    np.testing.assert_allclose(curve.discard, expected[f"{prefix}/{method}/discard_fractions"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.fnmr, expected[f"{prefix}/{method}/fnmr"], rtol=0, atol=1e-12)
    areas = [partial_area(curve, limit) for limit in LIMITS]
    np.testing.assert_allclose(areas, expected[f"{prefix}/{method}/pauc_raw"], rtol=0, atol=1e-12)
    relative = [relative_area(area, curve.fnmr[0], limit) for area, limit in zip(areas, LIMITS, strict=True)]
    np.testing.assert_allclose(relative, expected[f"{prefix}/{method}/pauc_relative"], rtol=0, atol=1e-12)
    best = [best_area(curve.fnmr[0], limit) for limit in LIMITS]
    np.testing.assert_allclose(best, expected[f"{prefix}/{method}/area_theoretical_best"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("column", "fmr"), [(0, 0.01), (1, 0.001), (2, 0.0001)])
def test_cr_fiqa_is_the_golden_curve(
    golden: Path, expected: dict[str, np.ndarray], method: str, column: int, fmr: float
) -> None:
    mated = expected["pair_index"][:, 2] == 1
    order = np.argsort(pair_quality(golden, expected, method), kind="stable")
    curve = cr_fiqa.erc_curve(cr_fiqa.distance_ranks(expected["similarity"]), mated, order, fmr)
    fnmr = expected[f"crfiqa/{method}/fnmr_stable_order"][:, column]
    np.testing.assert_allclose(curve.fnmr, fnmr, rtol=0, atol=1e-12)
    area = expected[f"crfiqa/{method}/auc_stable_order"][column]
    assert cr_fiqa.trapezoid_area(curve) == pytest.approx(area, abs=1e-12)


def test_cr_fiqa_in_the_order_of_the_reference_run(golden: Path, expected: dict[str, np.ndarray]) -> None:
    """The published run sorted with an unstable sort; in the order that it had, its own numbers come out."""
    mated = expected["pair_index"][:, 2] == 1
    ranks = cr_fiqa.distance_ranks(expected["similarity"])
    for method in METHODS:
        curve = cr_fiqa.erc_curve(ranks, mated, expected[f"crfiqa/{method}/order"], 0.01)
        np.testing.assert_allclose(curve.fnmr, expected[f"crfiqa/{method}/fnmr2"], rtol=0, atol=1e-12)
        assert cr_fiqa.trapezoid_area(curve) == pytest.approx(expected[f"crfiqa/{method}/auc2"], abs=1e-12)


def test_cr_fiqa_has_no_rate_without_both_kinds() -> None:
    assert np.isnan(cr_fiqa.refitted_fnmr(np.array([0, 1]), np.array([True, True]), 0.1))
    assert np.isnan(cr_fiqa.refitted_fnmr(np.array([0, 1]), np.array([False, False]), 0.1))


# pairs as (quality, is an error); few qualities, so that ties are common
pairs = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)
limits = st.floats(0.01, 1.0)


def curve_of(quality: np.ndarray, errors: np.ndarray):
    return edc_curve(discard_order(quality), errors)


def columns(drawn: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([q for q, _ in drawn], float), np.array([e for _, e in drawn])


@unhurried
@given(pairs)
def test_curve_is_brute_force(drawn: list[tuple[int, bool]]) -> None:
    quality, errors = columns(drawn)
    curve = curve_of(quality, errors)
    levels = sorted(set(quality))
    assert len(curve.discard) == len(levels)
    for level, discard, fnmr in zip(levels, curve.discard, curve.fnmr, strict=True):
        assert discard == pytest.approx(np.mean(quality < level))
        assert fnmr == pytest.approx(errors[quality >= level].mean())


@unhurried
@given(pairs, limits)
def test_area_is_brute_force(drawn: list[tuple[int, bool]], limit: float) -> None:
    curve = curve_of(*columns(drawn))
    edges = [*curve.discard, 1.0]
    rectangles = [
        (min(stop, limit) - start) * fnmr
        for start, stop, fnmr in zip(edges, edges[1:], curve.fnmr, strict=False)
        if start < limit
    ]
    assert partial_area(curve, limit) == pytest.approx(sum(rectangles))


@unhurried
@given(pairs, st.randoms())
def test_order_and_monotone_transforms_change_nothing(drawn: list[tuple[int, bool]], random) -> None:
    before = curve_of(*columns(drawn))
    random.shuffle(drawn)
    quality, errors = columns(drawn)
    after = curve_of(np.exp(quality) * 3 - 100, errors)
    np.testing.assert_array_equal(before.discard, after.discard)
    np.testing.assert_array_equal(before.fnmr, after.fnmr)


@unhurried
@given(st.lists(st.booleans(), min_size=1), st.floats(0.01, 1.0))
def test_constant_quality_is_flat(errors: list[bool], limit: float) -> None:
    curve = curve_of(np.zeros(len(errors)), np.array(errors))
    assert curve.discard.tolist() == [0.0]
    assert partial_area(curve, limit) == pytest.approx(np.mean(errors) * limit)


@unhurried
@given(st.lists(st.booleans(), min_size=2, max_size=60), limits)
def test_perfect_quality_meets_the_bound_from_above(errors: list[bool], limit: float) -> None:
    wrong = np.array(errors)
    curve = curve_of(1.0 - wrong + np.arange(len(wrong)) * 1e-3, wrong)  # every error goes before every success
    start = wrong.mean()
    reachable = np.maximum(0, (start - curve.discard) / (1 - curve.discard))
    np.testing.assert_allclose(curve.fnmr, reachable, atol=1e-12)
    assert partial_area(curve, limit) >= best_area(start, limit) - 1e-12
    for quality in (np.zeros(len(wrong)), np.arange(len(wrong)) % 3.0):
        assert partial_area(curve_of(quality, wrong), limit) >= partial_area(curve, limit) - 1e-12 or start == 0


@unhurried
@given(pairs, st.data())
def test_weights_count_like_repeated_pairs(drawn: list[tuple[int, bool]], data: st.DataObject) -> None:
    quality, errors = columns(drawn)
    weights = data.draw(arrays(np.int64, len(drawn), elements=st.integers(0, 3)).filter(lambda w: w.sum() > 0))
    weighted = edc_curve(discard_order(quality), errors, weights)
    repeated = curve_of(np.repeat(quality, weights), np.repeat(errors, weights))
    for limit in (0.1, 0.5, 1.0):
        assert partial_area(weighted, limit) == pytest.approx(partial_area(repeated, limit))


scores = arrays(np.float64, st.integers(1, 60), elements=st.integers(-5, 5).map(float))


@unhurried
@given(scores, st.floats(0.001, 0.999))
def test_threshold_is_the_smallest_that_keeps_the_target(nonmated: np.ndarray, fmr: float) -> None:
    threshold = fixed_threshold(np.sort(nonmated)[::-1], fmr)
    assert np.mean(nonmated >= threshold) <= fmr
    assert np.mean(nonmated >= np.nextafter(threshold, -np.inf)) > fmr


@unhurried
@given(st.integers(1, 10**7), st.sampled_from([1e-2, 1e-3, 1e-4, 0.29, 0.57]))
def test_allowed_false_matches_is_exact(count: int, fmr: float) -> None:
    found = allowed_false_matches(fmr, count)
    assert found / count <= fmr < (found + 1) / count


@pytest.mark.parametrize("fmr", [0.0, 1.0, -0.1])
def test_threshold_refuses_a_target_outside_of_0_and_1(fmr: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        fixed_threshold(np.array([0.5, 0.1]), fmr)


def test_bootstrap_draws_identities() -> None:
    """With one identity every replicate is the data itself; with many the interval holds the value."""
    rng = np.random.default_rng(0)
    quality, errors = rng.random(400), rng.random(400) < 0.2
    ordered = discard_order(quality)
    curve = edc_curve(ordered, errors)
    value = relative_area(partial_area(curve, 0.3), curve.fnmr[0], 0.3)
    one = relative_areas(ordered, errors, np.zeros(400, np.int64), [0.3], 20, 0)
    np.testing.assert_allclose(one, np.full((1, 20), value))
    several = relative_areas(ordered, errors, np.arange(400) // 4, [0.3], 500, 0)
    low, high = interval(several[0])
    assert low < value < high
    np.testing.assert_array_equal(several, relative_areas(ordered, errors, np.arange(400) // 4, [0.3], 500, 0))


def test_pairs_of_one_identity_are_not_independent() -> None:
    """When whole identities fail, resampling identities gives the wide interval that resampling pairs hides."""
    rng = np.random.default_rng(0)
    errors = np.repeat(rng.random(40) < 0.3, 25)
    ordered = discard_order(np.repeat(rng.random(40), 25) + rng.normal(0, 0.1, 1000))
    by_identity = interval(relative_areas(ordered, errors, np.repeat(np.arange(40), 25), [0.3], 300, 0)[0])
    by_pair = interval(relative_areas(ordered, errors, np.arange(1000), [0.3], 300, 0)[0])
    assert np.ptp(by_identity) > 2 * np.ptp(by_pair)


def test_bootstrap_without_errors_has_no_interval() -> None:
    ordered = discard_order(np.arange(5.0))
    values = relative_areas(ordered, np.zeros(5, bool), np.arange(5), [0.2, 0.3], 10, 0)
    assert np.isnan(values).all()
    assert interval(values[0]) is None
