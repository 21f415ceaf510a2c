"""Pairs of a frontal and a profile photograph."""

from __future__ import annotations

import pytest

from recipes.default_model.reports.profile_pairs import frontal_profile_pairs


def test_every_pair_has_a_frontal_and_a_profile_photograph() -> None:
    faces = [(person, f"cfp/{person}/{name}") for person in "abc" for name in ("f1.jpg", "f2.jpg", "p1.jpg")]
    rows = frontal_profile_pairs(faces, 7, seed=3)
    assert len(set(rows)) == len(rows) == 6 + 7
    for first, second, same in rows:
        assert "/f" in first
        assert "/p" in second
        assert same == (first[4] == second[4])
    assert rows == frontal_profile_pairs(faces, 7, seed=3) != frontal_profile_pairs(faces, 7, seed=4)
    with pytest.raises(ValueError, match="13 non-mated pairs of 12"):
        frontal_profile_pairs(faces, 13, seed=3)
