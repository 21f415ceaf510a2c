"""The training data of the regressor: images and their qualities, scaled to [0, 1]."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.inputs import is_label_table, read_qualities
from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache, Images, read_images


@dataclass
class ScoredFaces:
    """N images in ascending order of quality. `train` and `validation` hold the same images, of which other rows are
    usable; `labels` float32 (N,) are in [0, 1]."""

    train: Images
    validation: Images
    labels: Tensor

    def fingerprint(self) -> str:
        """A hash of the images' names and labels, wherever they lie."""
        rows = torch.cat([self.train.usable, self.validation.usable]).tolist()
        lines = (f"{Path(self.train.paths[row]).name} {self.labels[row]:.6f}" for row in rows)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


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
    quality do not train. Validation takes each `validation_every`th image in the order of the qualities, the first
    included. Raises ValueError when too few images are left, or all have one quality.
    """
    scores = read_qualities(table, skip_unscored=True)
    folder = Path(root) if root or not is_label_table(table) else Path(table).parent
    raw = np.array(list(scores.values()))
    order = np.argsort(raw, kind="stable")
    names = list(scores)
    paths = [str(folder / names[row]) for row in order]
    images, bad = read_images(paths, range(len(paths)), preprocessing, cache, workers)
    usable = images.usable
    validates = torch.zeros(len(usable), dtype=torch.bool)
    validates[::validation_every] = True
    if int((~validates).sum()) < 2 * processes.count():
        reasons = f" ({', '.join(sorted(set(bad.values())))})" if bad else ""
        raise ValueError(
            f"{table}: {len(usable)} of {len(paths)} images below {folder} can be read{reasons}, too few to train on; "
            "check --images"
        )
    found = raw[order][usable.numpy()]
    if found[0] == found[-1]:
        raise ValueError(f"{table}: qualities that differ were expected; all {len(found)} images have {found[0]:g}")
    labels = torch.from_numpy(((raw[order] - found[0]) / (found[-1] - found[0])).clip(0, 1)).float()
    train, validation = (replace(images, usable=usable[mask]) for mask in (~validates, validates))
    return ScoredFaces(train, validation, labels), [(paths[row], status) for row, status in bad.items()]
