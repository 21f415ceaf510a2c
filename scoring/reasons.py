"""Reasons to act on: what is wrong with a picture of a face, with a value, and what the person can do about it.

Each reason rests on a calibrated probability of a factor (`model/calibration.py`) or on a fact that was measured when
the face was found. docs/reasons.md explains them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from faces.degradations import SIZE, in_face
from faces.template import ARCFACE_POINTS, similarity_transform

ADVICE = {  # code -> what the person can do
    "low_sharpness": "Hold still and let the camera focus; clean the lens.",
    "occluded": "Take away what covers your face: mask, dark glasses, hand, hair or hat.",
    "extreme_pose": "Turn your face to the camera.",
    "strong_expression": "Relax your face and close your mouth.",
    "bad_lighting": "Find even light on your face, neither dark nor glaring, and none from one side or from behind.",
    "small_face": "Come closer to the camera.",
    "low_resolution": "Take the picture with more pixels; do not send a thumbnail.",
    "cut_off": "Move until your whole face is in the picture.",
    "several_faces": "Be alone in the picture.",
    "low_quality": "Take another picture: it is poor, for example by noise or compression.",
}
FACTOR_CODES = {  # code -> factor, the levels that count, whether these are the bad ones
    "low_sharpness": ("blur", ("hazy", "blurry")),
    "occluded": ("occlusion", ("obstructed",)),
    "extreme_pose": ("pose", ("profile",)),
    "strong_expression": ("expression", ("exaggerated expression",)),
    "bad_lighting": ("illumination", ("extreme lighting",)),
}
SURE = 0.5  # a factor is a reason when the probability of its bad levels is above it
LEAST_FACE = 48  # pixels of the box's shorter side: the eyes are about 25 pixels apart, 35 in the crop
SMALL_SHARE = 0.25  # a face whose side is a smaller share of the picture's is far away; else the picture is small
LARGEST_CUT = 0.1  # share of the face outside of the picture


@dataclass(frozen=True)
class Reason:
    """A reason to act on. `value` is a probability for the codes of `FACTOR_CODES`, else what was measured: pixels for
    small_face and low_resolution, the missing share of the face for cut_off, the number of faces for several_faces, the
    quality for low_quality."""

    code: str
    value: float

    @property
    def advice(self) -> str:
        """A sentence for the person before the camera."""
        return ADVICE[self.code]


@dataclass(frozen=True)
class Facts:
    """What finding the face told about it. All lengths are in pixels of the picture."""

    size: tuple[int, int]
    """Width and height of the picture."""
    box: tuple[float, float, float, float]
    """The face: left, top, right, bottom. It may reach beyond the picture."""
    points: Sequence[Sequence[float]] | None = None
    """Eyes, nose tip and mouth corners, five times (x, y), in the order of the ArcFace template."""
    faces: int = 1
    """How many faces the picture shows."""


def facts_of(
    size: tuple[int, int], box: Sequence[float] | None, points: Sequence[float] | None, faces: int | None
) -> Facts | None:
    """The facts of a face in a picture of this width and height; None for one that was not looked for (no box).

    `box` is left, top, right and bottom; `points` are x and y of the five points, ten numbers.
    """
    if box is None:
        return None
    left, top, right, bottom = box
    pairs = None if points is None else np.reshape(points, (5, 2)).tolist()
    return Facts(size, (left, top, right, bottom), pairs, faces or 1)


def reasons_of(
    factors: Mapping[str, Mapping[str, float]] | None, facts: Facts | None, quality: float, band: str | None
) -> tuple[Reason, ...] | None:
    """All reasons of one face, those of its factors first. `factors` are None, or empty, where there are no calibrated
    probabilities. A face of the band low that has no other reason gets low_quality. None when nothing is known."""
    reasons = [*factor_reasons(factors or {}), *(fact_reasons(facts) if facts else ())]
    if not reasons and band == "low":
        reasons = [Reason("low_quality", quality)]
    return tuple(reasons) if reasons or factors or facts else None


def factor_reasons(factors: Mapping[str, Mapping[str, float]]) -> Iterator[Reason]:
    """The reasons of calibrated probabilities: factor -> level -> probability."""
    for code, (factor, levels) in FACTOR_CODES.items():
        if factor in factors and (probability := sum(factors[factor][level] for level in levels)) > SURE:
            yield Reason(code, probability)


def fact_reasons(facts: Facts) -> Iterator[Reason]:
    """The reasons of measured facts."""
    side = face_side(facts)
    if side < LEAST_FACE:
        yield Reason("small_face" if side < SMALL_SHARE * min(facts.size) else "low_resolution", side)
    if (cut := share_outside(facts)) > LARGEST_CUT:
        yield Reason("cut_off", cut)
    if facts.faces > 1:
        yield Reason("several_faces", facts.faces)


def face_side(facts: Facts) -> float:
    """The shorter side of the box, pixels."""
    left, top, right, bottom = facts.box
    return min(right - left, bottom - top)


def share_outside(facts: Facts) -> float:
    """The share of the face, in [0, 1], that lies beyond the border of the picture.

    With points, of the face's ellipse in the aligned crop; else, of the box, which some detectors cut at the border.
    """
    if facts.points is None:
        left, top, right, bottom = facts.box
        x, y = (np.linspace(a, b, 65)[:-1] + (b - a) / 128 for a, b in ((left, right), (top, bottom)))
        xs, ys = map(np.ravel, np.meshgrid(x, y))
    else:
        xs, ys = _ellipse(np.asarray(facts.points, np.float64))
    width, height = facts.size
    inside = (xs > -0.5) & (xs < width - 0.5) & (ys > -0.5) & (ys < height - 0.5)
    return float(1 - inside.mean())


def _ellipse(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of the face's ellipse in the crop lie in the picture: x and y, (E,) each."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    face = in_face(x, y)
    to_picture = similarity_transform(ARCFACE_POINTS, points)
    return tuple(to_picture @ np.stack([x[face], y[face], np.ones(face.sum())]))
