"""Faces in photographs: found at every size and turn, each once, with exact points; and none where there is none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from faces.detect import (
    CHOICES,
    TILE,
    Face,
    Finder,
    _suppressed,
    _tile_starts,
    _turned_back,
    detect,
    is_face,
    refine_points,
    search_scales,
    shows_aligned_face,
)
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, mapped, mapped_back, similarity_transform
from model.checkpoint import CheckpointError
from model.face_points import ASYMMETRY, CENTRE, FacePoints, mirrored
from recipes.raw_photographs.center_face import read_center_face

SAMPLES = Path(__file__).parents[1] / "samples"
YUNET = Path(__file__).parent / "golden" / "yunet" / "face_detection_yunet_2023mar.onnx"
FACE, OTHER = (read_image(SAMPLES / name) for name in ("astronaut.png", "hopper_dark.png"))
EYES = float(np.linalg.norm(ARCFACE_POINTS[0] - ARCFACE_POINTS[1]))


def put(canvas: np.ndarray, face: np.ndarray, scale: float, x: float, y: float, degrees: float = 0) -> np.ndarray:
    """Paste a crop, scaled and turned, with its middle at (x, y); where its points (5, 2) are then."""
    matrix = cv2.getRotationMatrix2D((55.5, 55.5), degrees, scale)
    matrix[:, 2] += np.array([x, y]) - 55.5
    if scale < 0.5:
        face = cv2.GaussianBlur(face, (0, 0), 0.4 / scale)
    size = canvas.shape[1], canvas.shape[0]
    inside = cv2.warpAffine(np.full(face.shape[:2], 255, np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    canvas[inside] = cv2.warpAffine(face, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[inside]
    return mapped(ARCFACE_POINTS, matrix)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def error(face: Face, points: np.ndarray) -> float:
    """How far beside `points` alignment brings the template's points, in eye distances, on average."""
    found = mapped_back(ARCFACE_POINTS, similarity_transform(face.points, ARCFACE_POINTS))
    return float(np.linalg.norm(found - points, axis=1).mean() / np.linalg.norm(points[0] - points[1]))


@pytest.mark.parametrize(
    ("scale", "degrees", "height", "width"),
    [(1, 0, 300, 300), (2.5, 20, 480, 640), (0.45, 0, 480, 640), (6, -25, 1200, 900), (0.6, 10, 80, 80)],
)
def test_a_face_is_found_with_its_points(scale: float, degrees: float, height: int, width: int) -> None:
    picture = grey(height, width)
    points = put(picture, FACE, scale, width / 2, height / 2, degrees)
    (face,) = detect(picture)
    assert face.score > 0.5
    assert error(face, points) < 0.08
    left, top, right, bottom = face.box
    assert ((face.points > (left, top)) & (face.points < (right, bottom))).all()


def test_a_crowd_is_found_once_each_largest_first() -> None:
    picture = grey(500, 900)
    scales = [1.6, 1.2, 0.9, 0.7, 0.6]
    places = [put(picture, FACE, scale, x, 250) for scale, x in zip(scales, (120, 330, 500, 640, 780), strict=True)]
    faces = detect(picture)
    assert len(faces) == 5
    assert [face.size for face in faces] == sorted((face.size for face in faces), reverse=True)
    assert all(error(face, points) < 0.1 for face, points in zip(faces, places, strict=True))
    assert len(detect(picture, min_face_size=90)) < 5
    (largest,), _ = Finder("largest").find(picture)
    (central,), count = Finder("central").find(picture)
    assert error(largest, places[0]) < 0.1
    assert error(central, places[2]) < 0.1
    assert count == 5
    assert len(Finder("all").find(picture)[0]) == 5


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (112, 112), (240, 320)])
def test_where_there_is_no_face_none_is_found(shape: tuple[int, int]) -> None:
    assert detect(grey(*shape), min_face_size=60) == []
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detect(noise, min_face_size=60) == []


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_picture_is_searched_in_every_direction(turns: int) -> None:
    picture = grey(300, 400)
    points = put(picture, FACE, 1.5, 180, 150)
    (found,) = detect(np.ascontiguousarray(np.rot90(picture, turns)), rotate="auto")
    back = _turned_back(found, turns, 300, 400)
    assert error(back, points) < 0.08
    left, top, right, bottom = back.box
    assert left < points[:, 0].min() < points[:, 0].max() < right
    assert top < points[:, 1].min() < points[:, 1].max() < bottom


def test_turning_back_is_exact() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for turns in (1, 2, 3):
        turned = np.rot90(picture, turns)
        for x, y in ((0, 0), (2, 1), (turned.shape[1] - 1, turned.shape[0] - 1)):
            face = _turned_back(Face((x, y, x, y), 1.0, np.array([[x, y]] * 5, np.float64)), turns, 5, 7)
            column, row = face.points[0].astype(int)
            assert np.array_equal(picture[row, column], turned[y, x])
            assert face.box == (column, row, column, row)


def test_a_small_face_in_a_large_picture_is_found() -> None:
    picture = grey(3000, 4000)
    points = put(picture, FACE, 1.2, 3100, 2200)
    (face,) = detect(picture, min_face_size=60, only_largest=True)
    assert error(face, points) < 0.1


def test_thirty_megapixels_need_no_more_time_than_their_faces() -> None:
    picture = grey(5000, 6000)
    points = put(picture, FACE, 25, 3000, 2500)
    (face,) = detect(picture, only_largest=True)
    assert error(face, points) < 0.08


def test_tiles_cover_a_picture_and_overlap() -> None:
    for side in (100, 700, 769, 2000, 5001):
        starts = _tile_starts(side)
        ends = [min(start + TILE, side) for start in starts] if len(starts) > 1 else [side]
        assert starts[0] == 0
        assert ends[-1] == side
        assert all(end - start >= 100 for end, start in zip(ends, starts[1:], strict=False))


def test_scales_reach_the_smallest_face() -> None:
    assert search_scales(80, 100, 24) == [3.2]
    scales = search_scales(3000, 4000, 24)
    assert scales[0] == 320 / 4000
    assert all(small < large <= 2 * small for small, large in pairwise(scales))
    assert scales[-1] >= 16 / 24
    assert search_scales(3000, 4000, 400) == [320 / 4000]


def test_the_time_for_a_huge_picture_has_a_bound() -> None:
    for height, width in [(5000, 10_000), (10_000, 5000), (100, 30_000)]:
        assert height * width * search_scales(height, width, 24)[-1] ** 2 <= 8.001e6
    assert 40 * search_scales(5000, 10_000, 24)[-1] >= 16   # pixels of a face that is found


def test_a_face_is_kept_once() -> None:
    points = np.zeros((5, 2))
    boxes = [(0, 0, 100, 100), (10, 5, 110, 95), (20, 20, 50, 60), (300, 0, 400, 100)]
    faces = [Face(box, score, points) for box, score in zip(boxes, (0.7, 0.9, 0.8, 0.5), strict=True)]
    assert [face.score for face in _suppressed(faces)] == [0.9, 0.5]


def test_points_converge_from_a_rough_start() -> None:
    picture = grey(300, 300)
    points = put(picture, FACE, 1.3, 150, 150, 5)
    rough = points + np.random.default_rng(0).normal(0, 4, (5, 2))
    better, logits = refine_points(picture, [rough, points])
    assert np.linalg.norm(better[0] - better[1], axis=1).mean() < 0.05 * 1.3 * EYES
    assert logits.min() > 0
    assert refine_points(picture, [])[0] == []
    upside_down = np.ascontiguousarray(picture[::-1, ::-1])
    _, logits = refine_points(upside_down, [points])
    assert logits.max() < 0, "without a detector that says so, no face on its head is taken for one"


def test_a_crop_shows_its_face_or_not() -> None:
    assert shows_aligned_face(FACE)
    assert shows_aligned_face(OTHER)
    assert not shows_aligned_face(np.roll(FACE, (40, 50), axis=(0, 1)))
    assert not shows_aligned_face(np.ascontiguousarray(np.rot90(FACE, 2)))
    assert not shows_aligned_face(np.random.default_rng(0).integers(0, 256, FACE.shape, dtype=np.uint8))


def test_a_weak_detection_needs_the_other_network() -> None:
    assert is_face(0.9, 0.0)
    assert is_face(0.35, 2.0)
    assert not is_face(0.35, -2.0)
    assert not is_face(0.9, -9.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"faces": "some"}, "none of largest, central, all"),
        ({"rotate": "left"}, "none of no, auto"),
        ({"min_face_size": 0}, "at least 1"),
        ({"detector": "absent.onnx"}, "no detector absent.onnx"),
    ],
)
def test_wrong_wishes_are_refused(wrong: dict[str, object], message: str) -> None:
    assert set(CHOICES) == {"largest", "central", "all"}
    with pytest.raises(ValueError, match=message):
        Finder(**wrong)  # type: ignore[arg-type]


def test_the_network_of_points_loads_again() -> None:
    network = FacePoints().eval()
    again = FacePoints.from_tensors(network.state_dict())
    windows = torch.randint(0, 256, (2, 192, 192, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        points, logits = network(windows)
        assert points.shape == (2, 5, 2)
        assert torch.equal(logits, again(windows)[1])
    tensors = {**network.state_dict(), "linear.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="misshapen"):
        FacePoints.from_tensors(tensors)


def test_another_onnx_file_is_no_center_face(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", value[:1], value[1:], [weight])), tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match="not CenterFace"):
        read_center_face(tmp_path / "a.onnx")


def test_a_detector_of_yunets_format_takes_the_place(tmp_path: Path) -> None:
    """The published network of OpenCV's model zoo; see the licence beside it."""
    finder = Finder(detector=str(YUNET), rotate="auto")
    picture = grey(480, 640)
    points = put(picture, FACE, 2, 400, 200, 15)
    (face,), count = finder.find(picture)
    assert (count, finder.name) == (1, "face_detection_yunet_2023mar")
    assert error(face, points) < 0.08
    left, top, right, bottom = face.box
    assert ((face.points > (left, top)) & (face.points < (right, bottom))).all()
    for turns in (1, 2, 3):
        (turned,), _ = finder.find(np.ascontiguousarray(np.rot90(picture, turns)))
        assert error(_turned_back(turned, turns, *picture.shape[:2]), points) < 0.08
    large = grey(2400, 3200)
    points = put(large, FACE, 10, 1600, 1200)
    (face,), _ = finder.find(large)
    assert error(face, points) < 0.08
    assert finder.find(grey(64, 64)) == ([], 0)


def test_a_file_that_is_no_detector_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"no\.onnx is no detector of OpenCV's YuNet format"):
        Finder(detector=str(tmp_path / "no.onnx")).find(grey(320, 320))


def test_points_of_a_mirror_image_come_back() -> None:
    """Left stays left, and the middle is a little to the right of the window's."""
    there = mirrored(ARCFACE_POINTS)
    np.testing.assert_allclose(mirrored(there), ARCFACE_POINTS)
    assert (there[[0, 3], 0] < there[[1, 4], 0]).all()
    np.testing.assert_allclose((there + ARCFACE_POINTS[[1, 0, 2, 4, 3]])[:, 0] / 2, CENTRE[0] + ASYMMETRY)
    np.testing.assert_allclose(mirrored(np.stack([there, there]))[1], ARCFACE_POINTS)
