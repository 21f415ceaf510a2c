"""Head pose from 68 landmarks, as in CLIB-FIQA's published labels: 14 of them are fitted to a fixed model of a head."""

from __future__ import annotations

import math

import cv2
import numpy as np

FRONTAL, SLIGHT_ANGLE = 10.0, 25.0   # maximum |yaw| in degrees of the two better pose classes

# Eyebrow ends, eye corners, nose wings, mouth corners, lower lip, chin: indices among the 68, and x, y, z in the model.
MODEL_IDS = (17, 21, 22, 26, 36, 39, 42, 45, 31, 35, 48, 54, 57, 8)
MODEL_POINTS = np.array([
    (6.825897, 6.760612, 4.402142),
    (1.330353, 7.122144, 6.903745),
    (-1.330353, 7.122144, 6.903745),
    (-6.825897, 6.760612, 4.402142),
    (5.311432, 5.485328, 3.987654),
    (1.789930, 5.393625, 4.413414),
    (-1.789930, 5.393625, 4.413414),
    (-5.311432, 5.485328, 3.987654),
    (2.005628, 1.409845, 6.165652),
    (-2.005628, 1.409845, 6.165652),
    (2.774015, -2.080775, 5.048531),
    (-2.774015, -2.080775, 5.048531),
    (0.0, -3.116408, 6.097667),
    (0.0, -7.415691, 4.070434),
])


def euler_angles(points: np.ndarray, width: int, height: int) -> tuple[float, float, float]:
    """Pitch, yaw and roll in degrees from the landmarks (68, 2) of an image of that size.

    The camera is a pinhole: its focal length is the image's width, its principal point the image's centre. The model is
    mirrored relative to the camera's axes, so pitch is near +-180 for an upright face. Labels use |yaw| only.
    """
    camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float64)
    used = np.ascontiguousarray(points[list(MODEL_IDS)], np.float64)
    _, rotation, _ = cv2.solvePnP(MODEL_POINTS, used, camera, np.zeros(4), flags=cv2.SOLVEPNP_ITERATIVE)
    r = cv2.Rodrigues(rotation)[0]
    angles = (
        math.atan2(r[2, 1], r[2, 2]),
        math.atan2(-r[2, 0], math.hypot(r[0, 0], r[1, 0])),
        math.atan2(r[1, 0], r[0, 0]),
    )
    pitch, yaw, roll = map(math.degrees, angles)
    return pitch, yaw, roll


def pose_class(yaw: float) -> int:
    """The level of the pose axis: 0 profile, 1 slight angle, 2 frontal."""
    return int(abs(yaw) <= SLIGHT_ANGLE) + int(abs(yaw) <= FRONTAL)
