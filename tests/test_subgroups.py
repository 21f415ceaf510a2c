"""Scores and errors by kinds of faces."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.pairs import Pairs
from recipes.default_model.reports.subgroups import group_rows


def test_a_group_counts_the_pairs_that_it_touches() -> None:
    """Ten images: 0 is the worst and its mated pair fails, as does that of 2 and 3."""
    first, second = np.array([0, 2, 4, 6, *range(8)]), np.array([1, 3, 5, 7, *([8] * 8)])
    mated = np.arange(12) < 4
    pairs = Pairs([str(i) for i in range(10)], first.astype(np.int32), second.astype(np.int32), mated)
    quality = np.linspace(0.1, 0.9, 10)
    similarity = np.array([0.1, 0.2, 0.9, 0.9, *[0.3] * 8])
    groups = {"bad": np.arange(10) < 2, "good": np.arange(10) >= 4}
    everyone, bad, good = group_rows(pairs, quality, similarity, groups)
    assert everyone == ["all", 10, pytest.approx(0.5), 0.1, 4, [0.5, 2], [pytest.approx(1 / 3), 1]]
    assert bad == ["bad", 2, pytest.approx(0.1 + 0.4 / 9), 0.5, 1, [1.0, 1], None]
    assert good == ["good", 6, pytest.approx(0.1 + 5.2 / 9), 0.0, 2, [0.0, 0], [0.0, 0]]
