"""How methods that score aligned faces prepare them: one crop for each face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from faces.align import Alignment, crops_of
from model.preprocessing import Preprocessing

from .contract import Batch, Prepared
from .reasons import facts_of


def prepare_face(
    preprocessing: Preprocessing,
    alignment: Alignment | str,
    rgb: np.ndarray,
    path: str = "",
    points: np.ndarray | None = None,
    faces: str | None = None,
) -> Prepared | list[Prepared]:
    """RGB uint8 (H, W, 3) -> the wanted face as one crop of the network's size, or a list of several faces.

    `alignment` may also be just its `align`: no, yes or auto. `points` (5, 2) or (K, 5, 2) are those of faces that are
    known already. `faces` (largest, central, all) takes the place of the one of the alignment's finder. Raises
    ImageError (no_face).
    """
    chosen = Alignment(alignment) if isinstance(alignment, str) else alignment
    if faces is not None:
        chosen = replace(chosen, finder=replace(chosen.finder, faces=faces))
    height, width = rgb.shape[:2]
    prepared = []
    for crop in crops_of(rgb, chosen, points):
        others = crop.placed.faces if chosen.finder.faces != "all" else 1   # all were asked for: no reason to complain
        facts = facts_of((width, height), crop.placed.box, crop.placed.points, others)
        prepared.append(Prepared(preprocessing.resize(crop.pixels)[None], facts=facts, placed=crop.placed))
    return prepared[0] if len(prepared) == 1 else prepared


def normalised(batch: Batch, preprocessing: Preprocessing, dtype: torch.dtype) -> Tensor:
    """The crops of a batch as the network takes them: (N * K, 3, S, S), the K crops of an image side by side."""
    return preprocessing.normalise(batch.crops.flatten(0, 1)).to(dtype)
