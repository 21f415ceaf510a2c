"""How methods that score aligned faces prepare them: one crop for each image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from faces.align import aligned
from model.preprocessing import Preprocessing

from .contract import Batch, Prepared

ALIGN = ("auto", "yes", "no")


def prepare_face(preprocessing: Preprocessing, align: str, rgb: np.ndarray, path: str = "") -> Prepared:
    """RGB uint8 (H, W, 3) -> the face as one crop of the network's size.

    `align` is one of `ALIGN`; auto aligns every image that is not 112x112. Raises ImageError (no_face).
    """
    return Prepared(preprocessing.resize(aligned(rgb, align))[None])


def normalised(batch: Batch, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """The crops of a batch as the network takes them: (N * K, 3, S, S), the K crops of an image side by side."""
    return preprocessing.normalise(batch.crops.flatten(0, 1)).to(dtype)
