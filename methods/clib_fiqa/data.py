"""From a label table to batches: normalised anchors, factor labels and the images, in an order that a seed fixes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from labels.label_table import read_labels, resolve
from methods.clib_fiqa.losses import TASKS
from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache, CacheSize, Images, read_images


@dataclass
class LabelledFaces:
    """A label table, row for row: `quality` (N,) in [0, 1] (NaN in rows that do not train) and `factors` int64 (N, 5)
    in the order of `TASKS[1:]`. Only the rows in `images.usable` train: they have an anchor and a readable image."""

    images: Images
    quality: Tensor
    factors: Tensor

    def to(self, device: torch.device) -> LabelledFaces:
        """With the labels on the device, where every step looks them up; the images stay."""
        return LabelledFaces(self.images, self.quality.to(device), self.factors.to(device))


def read_faces(
    table: str | Path,
    preprocessing: Preprocessing,
    *,
    normalise: Literal["minmax", "percentile", "none"] = "minmax",
    cache: Cache = "auto",
    cache_size: CacheSize = "network",
    workers: int = 0,
) -> tuple[LabelledFaces, list[tuple[str, str]]]:
    """The faces of a label table, and the (path, status) of its rows that cannot train.

    The status of a bad image is the reader's; a row without an anchor has status `no_quality`. The anchors are
    normalised over the rows that train. Raises ValueError when too few rows are left.
    """
    if not Path(table).is_file():
        raise ValueError(f"--data-list {table}: no such file; generate_labels.py writes a label table")
    labels = read_labels(table)
    rows = [row for row, label in enumerate(labels) if label.quality is not None]
    raw = [math.nan if label.quality is None else label.quality for label in labels]
    paths = [resolve(label, table) for label in labels]
    images, bad = read_images(paths, rows, preprocessing, cache, workers, cache_size=cache_size)
    skipped = [(label.path, "no_quality") for label in labels if label.quality is None]
    skipped += [(labels[row].path, status) for row, status in bad.items()]
    if len(images.usable) < 2 * processes.count():
        reasons = sorted({status for _, status in skipped})
        raise ValueError(
            f"{table} has {len(images.usable)} rows with a quality and a readable image out of {len(labels)}"
            f"{' (' + ', '.join(reasons) + ')' if reasons else ''}; training needs {2 * processes.count()} or more"
        )
    factors = torch.from_numpy(np.array(list(map(attrgetter(*TASKS[1:]), labels)), np.int64))
    anchors = torch.full((len(labels),), math.nan, dtype=torch.float64)
    anchors[images.usable] = torch.tensor(raw, dtype=torch.float64)[images.usable]
    quality = normalise_quality(anchors, normalise).float()
    return LabelledFaces(images, quality, factors), skipped


def normalise_quality(quality: Tensor, method: Literal["minmax", "percentile", "none"] = "minmax") -> Tensor:
    """Anchors (N,), NaN where there is none, to [0, 1].

    `minmax` by the extremes (published; one outlier moves all), `percentile` by the 1st and 99th
    percentile, clipped, `none` for anchors that are in [0, 1] already. Equal anchors become 0.5.
    Raises ValueError for `none` with an anchor outside [0, 1].
    """
    if method == "none":
        if not bool(((quality >= 0) & (quality <= 1) | quality.isnan()).all()):
            raise ValueError("--normalise none needs qualities in [0, 1] in the table; use minmax or percentile")
        return quality
    ends = (0.0, 1.0) if method == "minmax" else (0.01, 0.99)
    low, high = np.nanquantile(quality.numpy(), ends)
    if high == low:
        return torch.where(quality.isnan(), quality, 0.5)
    return ((quality - low) / (high - low)).clamp(0, 1)
