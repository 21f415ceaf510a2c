"""What the training faces vary in beside damage: alignment, border and colour. No label may follow from these.

Detectors place the five points with errors of a few pixels. The crop of a face at the edge of its picture has a black
border, or none when the edge was continued: that tells the data set, and so the label, but nothing about the face.
"""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 112
BLACK = 8  # largest value of a black pixel, after JPEG
SMALLEST_BORDER = 60  # pixels
FILLS = ("black", "replicate", "blur")

Generator = np.random.Generator


def varied(image: np.ndarray, outside: np.ndarray, rng: Generator) -> np.ndarray:
    """A crop (112, 112, 3) with another border, another alignment, and in one of six cases in grey.

    outside (112, 112): where the crop lies outside its picture (`black_border`)."""
    image = misaligned(with_other_border(image, outside, rng), rng)
    return grey(image) if rng.uniform() < 1 / 6 else image


def misaligned(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Moved, turned and scaled as by the errors of a detector: about 1.5 pixels, 3 degrees, 4 %."""
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.normal(0, 3), float(np.exp(rng.normal(0, 0.04))))
    turn[:, 2] = turn[:, 2] + rng.normal(0, 1.5, 2)
    border = cv2.BORDER_REPLICATE if rng.uniform() < 0.5 else cv2.BORDER_CONSTANT
    return cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=border)


def with_other_border(image: np.ndarray, outside: np.ndarray, rng: Generator) -> np.ndarray:
    """What is outside, or else in one of three cases what would be outside of a tighter picture, filled in one of
    three ways."""
    if not outside.any():
        if rng.uniform() < 2 / 3:
            return image
        outside = outside_of_a_tighter_picture(rng)
    return filled(image, outside, str(rng.choice(FILLS)))


def black_border(image: np.ndarray) -> np.ndarray:
    """Where (112, 112) black areas touch the edge of the crop; small ones do not count."""
    dark = (image.max(axis=2) <= BLACK).astype(np.uint8)
    count, label, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    at_edge = np.unique(np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]]))
    kept = [i for i in range(1, count) if i in at_edge and stats[i, cv2.CC_STAT_AREA] >= SMALLEST_BORDER]
    return np.isin(label, kept)


def outside_of_a_tighter_picture(rng: Generator) -> np.ndarray:
    """Where (112, 112) a crop lies outside a picture whose edges, a little turned, pass close to the face."""
    angle = rng.normal(0, 0.15)
    y, x = np.mgrid[0:SIZE, 0:SIZE] - SIZE / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    left, right, top, bottom = rng.uniform((38, 38, 34, 42), 75)
    return (along < -left) | (along > right) | (across < -top) | (across > bottom)


def filled(image: np.ndarray, outside: np.ndarray, fill: str) -> np.ndarray:
    """The crop with the pixels `outside` (112, 112) black, or of the nearest pixel inside, or of these blurred."""
    if fill == "black" or outside.all():
        return np.where(outside[..., None], 0, image).astype(np.uint8)
    source = cv2.dilate(outside.astype(np.uint8), np.ones((5, 5), np.uint8))  # JPEG darkens pixels beside it
    source = outside.astype(np.uint8) if source.all() else source
    _, nearest = cv2.distanceTransformWithLabels(source, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inside = np.flatnonzero(source.ravel() == 0)
    lookup = np.zeros(nearest.max() + 1, np.int64)
    lookup[nearest.ravel()[inside]] = inside
    continued = image.reshape(-1, 3)[lookup[nearest]]
    if fill == "blur":
        continued = cv2.GaussianBlur(continued, (0, 0), 6)
    return np.where(source[..., None] > 0, continued, image)


def grey(image: np.ndarray) -> np.ndarray:
    """The crop without colour, still of three channels."""
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
