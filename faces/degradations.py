"""Damage to faces, of known kind and strength: one set for everything that learns from it or is tested on it.

The default model and its factor network learn from damaged crops, DifFIQA's diffusion model learns to undo the damage,
and DSL-FIQA learns to tell its kinds. `PHOTOGRAPHIC` kinds take pictures of any size; their lengths are in units of the
picture's shorter side / 112, so that a face in a larger picture is harmed alike. The other `KINDS` take aligned crops
of 112x112 only, as they must know where the face lies.

A strength lies in [0, 1]: 0 is barely visible, 1 leaves little for a face recognition system. Everything is a
deterministic function of the image (RGB uint8), the kind, the strength and the random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

SIZE = 112  # side of an aligned crop, and of the picture in which a length of 1 is one pixel
FACE_CENTRE, FACE_AXES = (56.0, 62.0), (40.0, 52.0)  # the face's ellipse in a crop of the ArcFace template, pixels
HEAVY_OCCLUSION = 0.35  # share of the face's ellipse; above it the occlusion counts as heavy

Generator = np.random.Generator


def gaussian_blur(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Defocus: a Gaussian of sigma 0.8 to 5 units."""
    return cv2.GaussianBlur(image, (0, 0), (0.8 + 4.2 * strength) * unit(image))


def motion_blur(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Camera shake: a line of 4 to 22 units in a random direction."""
    length = (4 + 18 * strength) * unit(image)
    side = int(length) | 1
    kernel = np.zeros((side, side), np.float32)
    angle = rng.uniform(0, np.pi)
    half = 0.5 * (length - 1) * np.array([np.cos(angle), np.sin(angle)])
    start, end = side // 2 - half, side // 2 + half
    cv2.line(kernel, tuple(np.rint(start).astype(int).tolist()), tuple(np.rint(end).astype(int).tolist()), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def low_resolution(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """A face seen from afar: shrunk until the shorter side has between 48 and 10 pixels, and enlarged again."""
    height, width = image.shape[:2]
    side = round(48 * (10 / 48) ** strength)
    enlarge = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    scale = side / min(height, width)
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=enlarge)


def jpeg(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Compression at quality 30 down to 2."""
    return compress(image, round(30 * (2 / 30) ** strength))


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """A JPEG of this quality, read again."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None, "OpenCV cannot read what it wrote"
    return np.ascontiguousarray(decoded[..., ::-1])


def noise(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Sensor noise: standard deviation 10 to 70 grey levels."""
    return to_bytes(image + rng.normal(0, 10 + 60 * strength, image.shape))


def dark(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Under-exposure to 0.4 down to 0.06 of the light, with the noise and the lost shadows that come with it."""
    gain = 0.4 * (0.06 / 0.4) ** strength
    return to_bytes(image * gain + rng.normal(0, 1 + 3 * strength, image.shape))


def bright(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Over-exposure: most of the skin is burnt out at strength 1."""
    return to_bytes(image * (1.6 + 2.4 * strength) + 20 + 50 * strength)


def colour_light(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Strongly coloured light: one or two channels nearly vanish."""
    keep = np.ones(3)
    keep[rng.permutation(3)[: rng.integers(1, 3)]] = 0.45 * (1 - strength) + 0.05
    return to_bytes(image * keep)


def side_light(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Light from one side: the other side of the face falls into the dark."""
    angle = rng.choice([0.0, np.pi]) + rng.uniform(-0.5, 0.5)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    along = ((x - FACE_CENTRE[0]) * np.cos(angle) + (y - FACE_CENTRE[1]) * np.sin(angle)) / 20.0
    floor = 0.35 * (1 - strength) + 0.03
    shade = floor + (1 - floor) / (1 + np.exp(-along * (0.8 + strength)))
    return to_bytes(image * (shade * rng.uniform(1.0, 1.4))[..., None])


def mask(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """A face mask or scarf from the chin up to the mouth (0) or to just below the eyes (1)."""
    top = 84 - 24 * strength + rng.uniform(-2, 2)
    sag = rng.uniform(-6, 8)
    edge = [(0, top + sag), (30, top), (56, top - rng.uniform(0, 6)), (82, top), (112, top + sag)]
    return _paint(image, [*edge, (112, 112), (0, 112)], rng)


def glasses(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Dark glasses of growing size."""
    cover = np.zeros((SIZE, SIZE), np.uint8)
    size = (int(9 + 8 * strength), int(6 + 7 * strength))
    for x in (38, 74):
        cv2.ellipse(cover, (x, 52 + int(rng.integers(-2, 3))), size, 0, 0, 360, 255, -1)
    cv2.line(cover, (38, 50), (74, 50), 255, 2)
    cv2.line(cover, (0, 48), (112, 48), 255, 2)
    return _blend(image, cover, np.full_like(image, rng.integers(0, 50, 3)))


def cap(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Hair, a hat or a hand from above, down to the brows (0) or over the eyes (1)."""
    low = 34 + 26 * strength
    edge = [(0, low + rng.uniform(-8, 8)), (56, low + rng.uniform(-6, 6)), (112, low + rng.uniform(-8, 8))]
    return _paint(image, [(0, 0), *edge, (112, 0)], rng)


def patch(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Any object before the face: a random polygon that covers 10 to 65 % of it."""
    radius = np.sqrt((0.10 + 0.55 * strength) * FACE_AXES[0] * FACE_AXES[1])
    centre = np.array(FACE_CENTRE) + rng.uniform(-0.45, 0.45, 2) * FACE_AXES
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = radius * rng.uniform(0.8, 1.3, 9)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    return _paint(image, points.tolist(), rng)


def hand(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Fingers across the face in the colour of its own skin."""
    cover = np.zeros((SIZE, SIZE), np.uint8)
    angle = rng.uniform(-0.6, 0.6) + rng.choice([0.0, np.pi / 2])
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    start = np.array(FACE_CENTRE) + rng.uniform(-25, 15, 2)
    for finger in range(2 + round(2 * strength)):
        base = start + across * finger * 13
        tip = base + along * rng.uniform(35, 60)
        cv2.line(cover, _pixel(base - along * 60), _pixel(tip), 255, 12)
    skin = np.median(image[60:80, 40:72].reshape(-1, 3), axis=0) * rng.uniform(0.75, 1.2)
    return _blend(image, cover, to_bytes(skin + rng.normal(0, 6, image.shape)))


# Kinds for pictures of any size. Their order is part of seeded draws.
PHOTOGRAPHIC = ("gaussian_blur", "motion_blur", "low_resolution", "jpeg", "noise", "dark", "bright", "colour_light")
# kind -> (function, the factor it harms; None harms the image as a whole). Their order is part of seeded draws.
KINDS: dict[str, tuple[Callable[[np.ndarray, float, Generator], np.ndarray], str | None]] = {
    "gaussian_blur": (gaussian_blur, "blur"),
    "motion_blur": (motion_blur, "blur"),
    "low_resolution": (low_resolution, "blur"),
    "jpeg": (jpeg, None),
    "noise": (noise, None),
    "dark": (dark, "illumination"),
    "bright": (bright, "illumination"),
    "side_light": (side_light, "illumination"),
    "colour_light": (colour_light, "illumination"),
    "mask": (mask, "occlusion"),
    "glasses": (glasses, "occlusion"),
    "cap": (cap, "occlusion"),
    "patch": (patch, "occlusion"),
    "hand": (hand, "occlusion"),
}


def degrade(image: np.ndarray, kind: str, strength: float, rng: Generator) -> np.ndarray:
    """Damage an image, RGB uint8 (H, W, 3), by one of KINDS with a strength in [0, 1]. Kinds that are not in
    PHOTOGRAPHIC need an aligned crop (112, 112, 3)."""
    function, _ = KINDS[kind]
    return function(image, strength, rng)


def require_photographic(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds, or all PHOTOGRAPHIC ones for none. Raises ValueError for another kind."""
    if unknown := [kind for kind in kinds if kind not in PHOTOGRAPHIC]:
        raise ValueError(f"no degradation {', '.join(unknown)}: expected some of {', '.join(PHOTOGRAPHIC)}")
    return tuple(kinds) or PHOTOGRAPHIC


def covered_share(image: np.ndarray, changed: np.ndarray) -> float:
    """Share of the face's ellipse, in [0, 1], that an occluder changed visibly."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    moved = np.abs(image.astype(np.int16) - changed).max(2) > 12
    return float(moved[in_face(x, y)].mean())


def in_face(x: Any, y: Any) -> Any:
    """Whether points of the template, numbers or arrays of pixels, lie in the face's ellipse."""
    return ((x - FACE_CENTRE[0]) / FACE_AXES[0]) ** 2 + ((y - FACE_CENTRE[1]) / FACE_AXES[1]) ** 2 <= 1


def unit(image: np.ndarray) -> float:
    """Pixels in a unit of length."""
    return min(image.shape[:2]) / SIZE


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.rint(point).astype(int).tolist()
    return x, y


def _paint(image: np.ndarray, polygon: list, rng: Generator) -> np.ndarray:
    cover = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(cover, [np.rint(np.array(polygon)).astype(np.int32)], 255)
    return _blend(image, cover, _texture(rng))


def _blend(image: np.ndarray, cover: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Lay `texture` over the image where `cover` (uint8) is set, with an edge as soft as a camera's."""
    weight = cv2.GaussianBlur(cover, (0, 0), 0.8)[..., None] / 255.0
    return to_bytes(image * (1 - weight) + texture * weight)


def _texture(rng: Generator) -> np.ndarray:
    """A random cloth: one colour, a smooth gradient, stripes or coarse noise, with a little grain."""
    colour, other = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    style = rng.integers(4)
    mix: np.ndarray
    if style == 0:
        mix = np.zeros((SIZE, SIZE))
    elif style == 1:
        mix = rng.uniform() * x + rng.uniform() * y
    elif style == 2:
        mix = np.sin(2 * np.pi * rng.uniform(3, 12) * (x * rng.uniform(-1, 1) + y)) > 0
    else:
        coarse = rng.uniform(size=(int(rng.integers(4, 24)),) * 2).astype(np.float32)
        mix = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    cloth = colour + (other - colour) * np.clip(mix, 0, 1)[..., None]
    return cloth + rng.normal(0, 4, (SIZE, SIZE, 3))
