"""How methods that score aligned faces prepare them: one crop for each image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from faces.align import ARCFACE_POINTS, SIZE, find_largest_face, five_of, is_to_be_aligned, warp
from model.preprocessing import Preprocessing

from .contract import Batch, Prepared
from .reasons import facts_of

ALIGN = ("auto", "yes", "no")


def prepare_face(preprocessing: Preprocessing, align: str, rgb: np.ndarray, path: str = "") -> Prepared:
    """RGB uint8 (H, W, 3) -> the face as one crop of the network's size, with the facts of a face that was looked for.

    `align` is one of `ALIGN`; auto aligns every image that is not 112x112. Raises ImageError (no_face).
    """
    if not is_to_be_aligned(rgb, align):
        return Prepared(preprocessing.resize(rgb)[None])
    face = find_largest_face(rgb)
    points = five_of(face.landmarks)
    facts = facts_of((rgb.shape[1], rgb.shape[0]), face.box.ravel().tolist(), points.ravel().tolist(), face.faces)
    return Prepared(preprocessing.resize(warp(rgb, points, ARCFACE_POINTS, SIZE))[None], facts=facts)


def normalised(batch: Batch, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """The crops of a batch as the network takes them: (N * K, 3, S, S), the K crops of an image side by side."""
    return preprocessing.normalise(batch.crops.flatten(0, 1)).to(dtype)
