"""Random crops by content, and the landmarks in them, against numbers of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recipe

from faces.dlib_models import largest_face
from faces.random_crops import (
    ABSENT,
    MIRRORED,
    content_seed,
    cut,
    face_square,
    fit,
    inside,
    landmark_places,
    landmark_vector,
    mirrored,
    random_corners,
    read_landmarks,
)
from faces.reader import read_image

ROOT = Path(__file__).parents[1]


def test_published_landmark_vectors(golden: Path) -> None:
    values = np.load(golden / "dsl_fiqa" / "dslfiqa_landmarks.npz")
    for index, corner in enumerate(values["boxes_top_left"]):
        assert np.array_equal(inside(values["landmarks"], corner, 384), values["inside"][index])
        found = landmark_vector(values["landmarks"], corner, 384)
        np.testing.assert_allclose(found, values["vectors"][index], atol=1e-7)
    far = landmark_vector(values["landmarks_far"], values["boxes_top_left"][0], 384)
    np.testing.assert_allclose(far, values["vectors_far"][0], atol=1e-7)
    for corner, expected in zip(values["boxes_top_left"], values["vectors_many"], strict=False):
        np.testing.assert_allclose(landmark_vector(values["landmarks_many"], corner, 384), expected, atol=1e-7)


def test_no_landmarks_are_minus_one() -> None:
    assert (landmark_vector(None, np.array([3, 4]), 384) == -1).all()


def test_more_landmarks_than_entries() -> None:
    points = np.random.default_rng(0).uniform(0, 60, (90, 2))
    vector = landmark_vector(points, np.zeros(2, int), 64, length=70)
    assert len(np.unique(vector)) == 70
    assert np.array_equal(vector, landmark_vector(points, np.zeros(2, int), 64, length=70))


def test_places_are_shares_of_the_crop() -> None:
    points = np.array([[10.0, 30.0], [74.0, 94.0], [9.9, 30.0]])
    places = landmark_places(points, np.array([30, 10]), 64, count=3)
    np.testing.assert_allclose(places, [[0, 0], [1, 1], [ABSENT, ABSENT]])
    assert (landmark_places(None, np.zeros(2), 64, count=3) == ABSENT).all()
    with pytest.raises(ValueError, match="reads 68 landmarks and the picture has 3"):
        landmark_places(points, np.zeros(2), 64)


def test_crops_follow_from_the_pixels_alone() -> None:
    image = recipe.mirror_image(1, 100)
    corners = random_corners(image, 64)
    assert corners.shape == (20, 2)
    assert np.array_equal(corners, random_corners(image[::1].copy(), 64))
    other = image.copy()
    other[0, 0, 0] ^= 1
    assert not np.array_equal(corners, random_corners(other, 64))
    assert content_seed(np.zeros((2, 8, 3), np.uint8)) != content_seed(np.zeros((4, 4, 3), np.uint8))
    many = random_corners(image, 64, count=5000)
    assert (many.min(), many.max()) == (0, 36)  # the last position counts too
    assert np.array_equal(cut(image, corners, 64)[7], image[corners[7, 0] :, corners[7, 1] :][:64, :64])


def test_a_picture_of_the_crops_size_has_one_crop() -> None:
    image = recipe.mirror_image(1, 64)
    assert np.array_equal(cut(image, random_corners(image, 64), 64), image[None])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64), (64, 64)),
        ((64, 80), (64, 80)),
        ((85, 300), (85, 300)),
        ((32, 48), (64, 96)),
        ((200, 400), (85, 170)),
        ((1, 5000), (64, 512)),
        ((5000, 2), (512, 64)),
    ],
)
def test_pictures_of_any_size(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    fitted, points = fit(image, None, 64)
    assert fitted.shape[:2] == expected
    assert points is None
    assert cut(fitted, random_corners(fitted, 64), 64).shape[1:] == (64, 64, 3)


def test_landmarks_go_with_the_picture() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    points = np.array([[300.0, 200.0], [350.0, 260.0], [325.0, 180.0]])
    for x, y in points.astype(int):
        image[y - 4 : y + 5, x - 4 : x + 5] = 255
    fitted, moved = fit(image, points, 64)
    assert moved is not None
    assert fitted.shape == (85, 85, 3)
    assert (fitted[tuple(np.rint(moved).astype(int).T[::-1])] > 200).all()


def test_a_square_at_the_border_stays_in_the_picture() -> None:
    image = recipe.mirror_image(2, 100)
    square, points = face_square(image, np.array([[0.0, 5.0], [30.0, 40.0]]))
    assert square.shape == (63, 63, 3)
    assert np.array_equal(square, image[0:63, 0:63])
    assert np.array_equal(points, [[0.0, 5.0], [30.0, 40.0]])


def test_mirrored_landmarks_are_those_of_the_mirror_image() -> None:
    image = read_image(ROOT / "samples" / "astronaut.png")
    points = largest_face(image)
    flipped, moved = mirrored(image, points)
    assert moved is not None
    found = largest_face(flipped)
    span = np.ptp(points, axis=0).max()
    assert np.abs(found - moved).max() < 0.08 * span
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(68))
    again, back = mirrored(flipped, moved)
    assert np.array_equal(again, image)
    assert back is not None
    np.testing.assert_allclose(back, points)
    with pytest.raises(ValueError, match="68 landmarks; it has 5"):
        mirrored(image, points[:5])


def test_landmark_files(tmp_path: Path) -> None:
    image, path = np.zeros((50, 40, 3), np.uint8), str(tmp_path / "a.npy")
    points = np.random.default_rng(0).uniform(0, 40, (68, 2))
    np.save(path, points)
    assert np.array_equal(read_landmarks(path, image), points)
    for wrong, message in (
        (points + 300, "68 of 68 landmarks lie outside the picture of 40x50 pixels; it is the file of another picture"),
        (points * np.nan, "lie outside"),
        (points[:, 0], "holds float64 .68,.: x and y of each landmark"),
        (points.astype(str), "x and y of each landmark"),
    ):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=message):
            read_landmarks(path, image)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is no \.npy file of numbers"):
        read_landmarks(path, image)
    Path(path).write_bytes(b"")
    with pytest.raises(ValueError, match=r"is no \.npy file of numbers"):
        read_landmarks(path, image)
    with pytest.raises(ValueError, match="does not exist"):
        read_landmarks(str(tmp_path / "b.npy"), image)
