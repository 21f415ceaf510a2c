"""Scoring with DSL-FIQA (Chen et al., CVPR 2024): how people would rate a face photograph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from faces.align import Alignment
from faces.dlib_models import largest_face
from faces.random_crops import CROPS, crops_for, face_square, fit, read_landmarks
from faces.reader import ImageError
from model.dsl_fiqa import DslFiqa, DslFiqaShape
from model.fast_dsl_fiqa import accelerate_dsl_fiqa
from model.loading import load

from .contract import Batch, Columns, Prepared

DEFAULT_ENCODER = "dsl-fiqa-de"  # for weights that hold no degradation encoder
NO_LANDMARKS = "no_landmarks"  # the status of a score without a found face


class DslFiqaScoring:
    """The quality network with its degradation encoder, on a device.

    `degradation_encoder` is the encoder's file, for weights that hold none or another one (default: the published one).
    `crops` is the number of random crops of an image. `landmark_folder` holds `STEM.npy`, the landmarks of the image
    `STEM.*`, as the published data sets have them; without it landmarks are looked for.

    Raises WeightsError (an OSError) when the weights hold no encoder and the encoder's file is not there.
    """

    def __init__(
        self,
        network: DslFiqa,
        dtype: torch.dtype,
        device: torch.device,
        alignment: Alignment,
        degradation_encoder: str | Path | None = None,
        crops: int = CROPS,
        landmark_folder: str | Path | None = None,
    ) -> None:
        if degradation_encoder or network.encoder is None:
            network.attach_encoder(load(degradation_encoder or DEFAULT_ENCODER))
        if crops < 1:
            raise ValueError(f"crops {crops} is too small: at least 1 was expected")
        if landmark_folder and not Path(landmark_folder).is_dir():
            raise ValueError(f"there is no landmark folder {landmark_folder}; a folder of .npy files was expected")
        self.network = accelerate_dsl_fiqa(network.to(device).eval(), dtype)
        self.dtype, self.device = dtype, device
        self.prepare = partial(prepare_file, network.shape, alignment.align, crops, landmark_folder)

    def predict(self, batch: Batch) -> Columns:
        """Quality from 0 on: the mean over the crops. All crops of one image are one batch of the network, and no crop
        of another, so that a score is the same to the last digit in any company."""
        return Columns(torch.stack([self._score(*item) for item in zip(batch.crops, batch.extra, strict=True)]))

    def _score(self, crops: torch.Tensor, landmarks: np.ndarray) -> torch.Tensor:
        different = crops[: len(landmarks)]  # the others repeat the only crop
        images = self.network.preprocessing.normalise(different)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            scores = self.network(images, torch.from_numpy(landmarks).to(self.device))
        return scores.mean()


def prepare_file(
    shape: DslFiqaShape, align: str, count: int, folder: str | Path | None, rgb: np.ndarray, path: str = ""
) -> Prepared:
    """`prepare_photograph`, with the landmarks of `folder` when there is one.

    Raises ImageError with the status bad_landmarks when the image has no usable landmark file there.
    """
    if folder is None:
        return prepare_photograph(shape, align, count, rgb)
    try:
        points = read_landmarks(str(Path(folder) / f"{Path(path).stem}.npy"), rgb)
    except ValueError as error:
        raise ImageError("bad_landmarks", str(error)) from error
    return prepare_photograph(shape, align, count, rgb, points)


def prepare_photograph(
    shape: DslFiqaShape, align: str, count: int, rgb: np.ndarray, points: np.ndarray | None = None
) -> Prepared:
    """`count` crops of an RGB uint8 picture (H, W, 3), with the landmarks of each.

    `points` (P, 2), x and y in pixels, are landmarks that are known already; else those of the largest face are looked
    for. With `align` yes the square around the face is taken of every picture, not only of large ones.
    """
    if points is None:
        points = _landmarks(rgb)
    status = NO_LANDMARKS if points is None and shape.landmarks != "none" else "ok"
    if align == "yes" and points is not None:
        rgb, points = face_square(rgb, points)
    image, points = fit(rgb, points, shape.image_size)
    crops, landmarks = crops_for(shape, image, points, count)
    return Prepared(np.repeat(crops, count // len(crops), axis=0), landmarks, status)


def _landmarks(rgb: np.ndarray) -> np.ndarray | None:
    try:
        return largest_face(rgb)
    except ImageError:
        return None
