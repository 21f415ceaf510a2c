"""Qualities that need no training: a floor and a ceiling for every table. Higher is better in all of them.

Each takes RGB uint8 faces (N, S, S, 3), aligned, and gives (N,) float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from faces.blur import sharpness

Crops = NDArray[np.uint8]
Embed = Callable[[Crops], NDArray[np.float32]]  # (N, S, S, 3) -> (N, D), not of unit length

NOISE_DRAWS = 5
NOISE_SIGMA = 8.0  # grey levels


def random(faces: Crops) -> NDArray[np.float64]:
    """Uniform in [0, 1), from the pixels themselves, so that it does not depend on the order of the images."""
    return np.array([np.random.default_rng(zlib.crc32(face.tobytes())).random() for face in faces])


def sobel(faces: Crops) -> NDArray[np.float64]:
    """Sharpness: the mean gradient magnitude of the lightness."""
    return np.array([sharpness(face) for face in faces])


def brightness(faces: Crops) -> NDArray[np.float64]:
    """Mean lightness L of Lab, 0 to 255."""
    return np.array([cv2.cvtColor(face, cv2.COLOR_RGB2LAB)[..., 0].mean() for face in faces])


def norm(faces: Crops, embed: Embed) -> NDArray[np.float64]:
    """L2 norm of the embedding; MagFace (Meng et al., CVPR 2021) trains networks so that it is the quality."""
    return lengths(embed(faces))


def flip(faces: Crops, embed: Embed) -> NDArray[np.float64]:
    """Cosine between the embeddings of a face and of its mirror image."""
    return np.sum(unit(embed(faces)) * unit(embed(mirrored(faces))), axis=1)


def noise(faces: Crops, embed: Embed) -> NDArray[np.float64]:
    """Mean cosine between the embedding of a face and those of copies with Gaussian noise, the same for all faces."""
    clean = unit(embed(faces))
    draws = np.random.default_rng(0).normal(0.0, NOISE_SIGMA, (NOISE_DRAWS, *faces.shape[1:]))
    noisy = (np.clip(np.rint(faces + draw), 0, 255).astype(np.uint8) for draw in draws)
    return np.mean([np.sum(clean * unit(embed(copy)), axis=1) for copy in noisy], axis=0)


def mirrored(faces: Crops) -> Crops:
    """The faces with left and right exchanged, as a contiguous copy."""
    return np.ascontiguousarray(faces[:, :, ::-1])


def lengths(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """L2 norms (N,) of vectors (N, D), which may be memory-mapped; no float64 copy of them is made."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows (N, D) scaled to length 1."""
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


PIXEL_BASELINES = {"random": random, "sobel": sobel, "brightness": brightness}
FR_BASELINES = {"norm": norm, "flip": flip, "noise": noise}
