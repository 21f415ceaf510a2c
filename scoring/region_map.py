"""What lowers a score: regions of the aligned face are replaced by those of a mean face, and the change is measured.

Occlusion maps (Zeiler and Fergus, ECCV 2014) cover a region with grey and show what a network needs. This asks the
other question, what in a picture harms it. So the region gets what an ordinary face has there: the mean of aligned
faces, in the colours of this one. Where the value rises, the picture's own content lowers it: an occluder, a
reflection, a shadow. No gradient is needed, so it works with any method and any axis, through the method's ordinary
batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from faces.align import SIZE
from faces.degradations import in_face
from model.files import replacing, write_text

MEAN_FACE = Path(__file__).with_name("mean_face.png")  # made by recipes/default_model/mean_face.py
SIDE, STEP = 32, 8  # of the square regions, pixels of the 112x112 template
OVERLAP = (SIDE // STEP) ** 2  # regions that hold a pixel in the middle of the face
SOFT = 2.5  # pixels: the standard deviation of the regions' soft edges
REGIONS: dict[str, tuple[int, int, int, int]] = {  # of the template: left, top, right, bottom; sides as in the picture
    "forehead": (22, 10, 90, 40),
    "left eye": (22, 40, 56, 62),
    "right eye": (56, 40, 90, 62),
    "nose": (42, 58, 70, 80),
    "left cheek": (16, 62, 42, 92),
    "right cheek": (70, 62, 96, 92),
    "mouth": (36, 80, 76, 100),
    "chin": (34, 100, 78, 112),
}


@dataclass(frozen=True)
class RegionMap:
    """How the value of an axis changes when a part of an aligned face is replaced by that of a mean face."""

    axis: str
    """quality, or a factor: then its value is the probability of its best level."""
    value: float
    """Of the unchanged face."""
    effect: np.ndarray
    """(112, 112) float32: the mean change over the regions that hold a pixel, smoothed; less near the border of the
    face, where fewer regions lie. Above 0 the picture's own content lowers the value; below 0 it raises it."""
    crop: np.ndarray
    """RGB uint8 (112, 112, 3): the face."""

    @property
    def peak(self) -> tuple[int, int]:
        """x and y of the pixel that lowers the value most."""
        y, x = np.unravel_index(int(self.effect.argmax()), self.effect.shape)
        return int(x), int(y)

    @property
    def regions(self) -> dict[str, float]:
        """The mean effect in each of `REGIONS`, from the one that lowers the value most."""
        means = {name: float(self.effect[y0:y1, x0:x1].mean()) for name, (x0, y0, x1, y1) in REGIONS.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def overlay(self) -> np.ndarray:
        """RGB uint8 (112, 112, 3): the face in grey, red where its content lowers the value, blue where it raises."""
        grey = np.repeat(self.crop.mean(axis=2, keepdims=True), 3, axis=2)
        strength = self.effect / max(float(np.abs(self.effect).max()), 1e-6)
        colour = np.where(strength[..., None] > 0, (220.0, 30.0, 30.0), (40.0, 80.0, 220.0))
        weight = 0.75 * np.abs(strength)[..., None]
        return np.rint(grey * (1 - weight) + colour * weight).astype(np.uint8)

    def write(self, prefix: Path) -> None:
        """PREFIX.png, the overlay; PREFIX.json, axis, value and regions; PREFIX.npy, the effect."""
        with replacing(f"{prefix}.png") as temporary:
            Image.fromarray(self.overlay()).resize((448, 448), Image.Resampling.BICUBIC).save(temporary, "PNG")
        with replacing(f"{prefix}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, self.effect)
        record = {
            "axis": self.axis,
            "value": round(self.value, 6),
            "peak": self.peak,
            "regions": {name: round(effect, 6) for name, effect in self.regions.items()},
        }
        write_text(f"{prefix}.json", json.dumps(record, indent=1) + "\n")


def map_regions(crop: np.ndarray, axis: str, values: Callable[[Sequence[np.ndarray]], np.ndarray]) -> RegionMap:
    """The map of an aligned face, RGB uint8 (S, S, 3). `values` gives the value (N,) of N crops of that size."""
    size = crop.shape[0]
    fill = ordinary_face(crop)
    boxes = region_boxes()
    masks = [soft_mask(box, size) for box in boxes]
    changed = [np.rint(crop * (1 - mask) + fill * mask).astype(np.uint8) for mask in masks]
    value, *others = values([crop, *changed]).tolist()
    effect = np.zeros((SIZE, SIZE))
    for (left, top), other in zip(boxes, others, strict=True):
        effect[top : top + SIDE, left : left + SIDE] += (other - value) / OVERLAP
    small = crop if size == SIZE else np.asarray(cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    smooth = np.asarray(cv2.GaussianBlur(effect, (0, 0), STEP / 2))  # the effect itself has steps of STEP pixels
    return RegionMap(axis, value, smooth.astype(np.float32), small)


def region_boxes() -> list[tuple[int, int]]:
    """Left and top of the regions whose centres lie in the face, pixels of the template."""
    starts = range(0, SIZE - SIDE + 1, STEP)
    return [(x, y) for y in starts for x in starts if in_face(x + SIDE / 2, y + SIDE / 2)]


def soft_mask(box: tuple[int, int], size: int) -> np.ndarray:
    """(size, size, 1) in [0, 1]: 1 inside of a region, with soft edges; for crops of another size it is scaled."""
    left, top = box
    hard = np.zeros((SIZE, SIZE), np.float32)
    hard[top : top + SIDE, left : left + SIDE] = 1
    mask = cv2.GaussianBlur(hard, (0, 0), SOFT, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(mask if size == SIZE else cv2.resize(mask, (size, size)))[..., None]


def ordinary_face(crop: np.ndarray) -> np.ndarray:
    """The mean face, float32 (S, S, 3), with the median colour and the contrast of this one, inside the ellipse."""
    size = crop.shape[0]
    mean = cv2.resize(mean_face(), (size, size)).astype(np.float32)
    y, x = np.mgrid[0:size, 0:size] * (SIZE / size)
    face = in_face(x, y)
    own, its = crop[face].astype(np.float32), mean[face]
    contrast = spread(own.mean(axis=1)) / max(spread(its.mean(axis=1)), 1.0)
    return np.clip((mean - np.median(its, axis=0)) * contrast + np.median(own, axis=0), 0, 255)


def spread(values: np.ndarray) -> float:
    """The distance of the quartiles, which an occluder changes less than the standard deviation."""
    low, high = np.percentile(values, (25, 75))
    return float(high - low)


@cache
def mean_face() -> np.ndarray:
    """RGB uint8 (112, 112, 3): the mean of aligned faces of LFW's training identities."""
    with Image.open(MEAN_FACE) as image:
        return np.array(image.convert("RGB"))
