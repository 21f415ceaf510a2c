"""The training data of the regressor: images and their qualities, scaled to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.inputs import is_label_table, read_qualities
from model.preprocessing import Preprocessing
from training.images import Cache
from training.scored import ScoredImages, read_scored_images
from training.state import fingerprint


@dataclass
class ScoredFaces(ScoredImages):
    """The images of a table."""

    def to(self, device: torch.device) -> ScoredFaces:
        """With the labels on the device, where every step looks them up; the images stay."""
        return replace(self, labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """A hash of the images' names and labels, wherever they lie."""
        rows = torch.cat([self.train.usable, self.validation.usable])
        labels = self.labels.cpu()[rows].tolist()
        names = (Path(self.train.paths[row]).name for row in rows.tolist())
        return fingerprint(f"{name} {label:.6f}" for name, label in zip(names, labels, strict=True))


def read_scored_faces(
    table: str,
    root: str,
    preprocessing: Preprocessing,
    *,
    validation_every: int = 20,
    cache: Cache = "auto",
    workers: int = 0,
) -> tuple[ScoredFaces, list[tuple[str, str]]]:
    """The images of a table of scores or labels, and the (path, status) of those that cannot be read.

    Paths are relative to `root`; without one to the folder of a label table, or the working directory. Images without a
    quality do not train. Raises ValueError when too few images are left, or all have one quality.
    """
    scores = read_qualities(table, skip_unscored=True)
    folder = Path(root) if root or not is_label_table(table) else Path(table).parent
    paths = [str(folder / name) for name in scores]
    quality = np.array(list(scores.values()))
    images, bad = read_scored_images(
        paths, quality, preprocessing, validation_every, cache, workers, str(table), "qualities"
    )
    return ScoredFaces(images.train, images.validation, images.labels, images.order), bad
