"""Photographic degradations of pictures of any size, of known kind and strength.

One documented set for everything that learns from synthetic damage. A strength lies in [0, 1]: 0 is barely visible, 1
leaves little of a face. Lengths are in units of the picture's shorter side / 112, so that a face in a larger picture is
harmed alike. Everything is a deterministic function of the image, the kind, the strength and the random generator.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

UNIT_SIDE = 112  # pixels of the shorter side at which a length of 1 is one pixel

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
    quality = round(30 * (2 / 30) ** strength)
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


DEGRADATIONS: dict[str, Callable[[np.ndarray, float, Generator], np.ndarray]] = {
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "low_resolution": low_resolution,
    "jpeg": jpeg,
    "noise": noise,
    "dark": dark,
    "bright": bright,
    "colour_light": colour_light,
}


def degrade(image: np.ndarray, kind: str, strength: float, rng: Generator) -> np.ndarray:
    """Damage an image, RGB uint8 (H, W, 3), by one of DEGRADATIONS with a strength in [0, 1]."""
    return DEGRADATIONS[kind](image, strength, rng)


def require_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds, or all of them for an empty tuple. Raises ValueError for an unknown one."""
    if unknown := [kind for kind in kinds if kind not in DEGRADATIONS]:
        raise ValueError(f"no degradation {', '.join(unknown)}: expected some of {', '.join(DEGRADATIONS)}")
    return kinds or tuple(DEGRADATIONS)


def unit(image: np.ndarray) -> float:
    """Pixels in a unit of length."""
    return min(image.shape[:2]) / UNIT_SIDE


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
