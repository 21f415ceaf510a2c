"""Scoring with DSL-FIQA (Chen et al., CVPR 2024): how people would rate a face photograph."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from faces.align import largest_face
from faces.random_crops import CROPS, crops_for, face_square, fit
from faces.reader import ImageError
from model.dsl_fiqa import DslFiqa, DslFiqaShape
from model.loading import load

from .contract import Batch, Columns, Prepared

DEFAULT_ENCODER = "dsl-fiqa-de"  # for weights that hold no degradation encoder
NO_LANDMARKS = "no_landmarks"  # the status of a score without a found face


class DslFiqaScoring:
    """The quality network with its degradation encoder, on a device.

    Raises WeightsError (an OSError) when the weights hold no encoder and the file of the published one is not there.
    """

    def __init__(self, network: DslFiqa, dtype: torch.dtype, device: torch.device, align: str) -> None:
        if network.encoder is None:
            network.attach_encoder(load(DEFAULT_ENCODER))
        self.network, self.dtype, self.device = network.to(device).eval(), dtype, device
        self.prepare = partial(prepare_photograph, network.shape, align)

    def predict(self, batch: Batch) -> Columns:
        """Quality from 0 on: the mean over the crops. All crops of one image are one batch of the network, and no crop
        of another, so that a score is the same to the last digit in any company."""
        return Columns(torch.stack([self._score(*item) for item in zip(batch.crops, batch.extra, strict=True)]))

    def _score(self, crops: torch.Tensor, landmarks: np.ndarray) -> torch.Tensor:
        different = crops[: len(landmarks)]  # the others repeat the only crop
        images = self.network.preprocessing.normalise(different)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            scores = self.network(images, torch.from_numpy(landmarks).to(self.device))
        return scores.float().mean()


def prepare_photograph(
    shape: DslFiqaShape, align: str, rgb: np.ndarray, points: np.ndarray | None = None
) -> Prepared:
    """The crops of an RGB uint8 picture (H, W, 3), with the landmarks of each.

    `points` (P, 2), x and y in pixels, are landmarks that are known already; else those of the largest face are looked
    for. With `align` yes the square around the face is taken of every picture, not only of large ones.
    """
    if points is None:
        points = _landmarks(rgb)
    status = NO_LANDMARKS if points is None and shape.landmarks != "none" else "ok"
    if align == "yes" and points is not None:
        rgb, points = face_square(rgb, points)
    image, points = fit(rgb, points, shape.image_size)
    crops, landmarks = crops_for(shape, image, points)
    return Prepared(np.repeat(crops, CROPS // len(crops), axis=0), landmarks, status)


def _landmarks(rgb: np.ndarray) -> np.ndarray | None:
    try:
        return largest_face(rgb)
    except ImageError:
        return None
