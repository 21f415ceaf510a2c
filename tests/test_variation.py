"""What the training faces vary in: no border, alignment or colour may tell a label."""

from __future__ import annotations

import numpy as np
import pytest
import recipe

from recipes.default_model.variation import (
    black_border,
    filled,
    outside_of_a_tighter_picture,
    varied,
    with_other_border,
)


@pytest.fixture
def framed() -> np.ndarray:
    """A crop with a black border at the left, and a black square inside."""
    image = np.maximum(recipe.mirror_image(3, 112), 40)
    image[:, :20] = 0
    image[50:60, 50:60] = 0
    return image


def test_only_black_at_the_edge_is_border(framed: np.ndarray) -> None:
    border = black_border(framed)
    assert border[:, :20].all()
    assert not border[:, 20:].any()
    framed[:, :20] = 40
    framed[:5, :5] = 0  # too small
    assert not black_border(framed).any()


def test_a_border_is_filled_in_three_ways(framed: np.ndarray) -> None:
    border = black_border(framed)
    assert (filled(framed, border, "black") == framed).all()
    for fill in ("replicate", "blur"):
        image = filled(framed, border, fill)
        assert (image[:, 25:] == framed[:, 25:]).all()
        assert not black_border(image).any()
        assert image[:, :20].min() >= 40 - 1
    everything = np.ones((112, 112), bool)
    assert not filled(framed, everything, "blur").any()


def test_every_border_occurs_with_every_face(framed: np.ndarray) -> None:
    """A face with a border loses it in two of three cases, one without a border gets one in some."""
    whole = np.maximum(recipe.mirror_image(3, 112), 40)
    for image, low, high in ((framed, 0.2, 0.5), (whole, 0.03, 0.3)):
        outside = black_border(image)
        shown = [black_border(with_other_border(image, outside, np.random.default_rng(i))).any() for i in range(90)]
        assert low < np.mean(shown) < high
    shares = [outside_of_a_tighter_picture(np.random.default_rng(i)).mean() for i in range(50)]
    assert 0 < min(shares) < max(shares) < 0.6


def test_a_variation_follows_from_its_seed(framed: np.ndarray) -> None:
    border, before = black_border(framed), framed.copy()
    versions = [varied(framed, border, np.random.default_rng(seed)) for seed in range(30)]
    assert (framed == before).all()
    assert all(image.shape == framed.shape and image.dtype == np.uint8 for image in versions)
    assert (varied(framed, border, np.random.default_rng(7)) == versions[7]).all()
    grey = [np.ptp(image, axis=2).max() == 0 for image in versions]
    assert 0 < sum(grey) < 15
