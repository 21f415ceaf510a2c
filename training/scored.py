"""Images with a quality each: labels in [0, 1], and which of them train and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocessing import Preprocessing
from training import processes
from training.images import Cache, Images, read_images


@dataclass
class ScoredImages:
    """N images in ascending order of quality. `train` and `validation` hold the same images, of which other rows are
    usable; `labels` float32 (N,) are in [0, 1]. `order` (N,) is where each image stood in the list that was read."""

    train: Images
    validation: Images
    labels: Tensor
    order: NDArray[np.int64]

    def close(self) -> None:
        """End the worker processes."""
        self.train.close()
        self.validation.close()


def read_scored_images(
    paths: Sequence[str],
    scores: NDArray[np.float64],
    preprocessing: Preprocessing,
    validation_every: int,
    cache: Cache,
    workers: int,
    source: str,
    what: str = "scores",
) -> tuple[ScoredImages, list[tuple[str, str]]]:
    """Images with their scores (N,), which become labels: 0 is the lowest of the images that can be read, 1 the
    highest. And the (path, status) of those that cannot.

    Validation takes each `validation_every`th image in the order of the scores, the first included; equal scores keep
    their order. Raises ValueError, naming the `source`, when too few images are left, or all have one score; `what` is
    its word for scores.
    """
    order = np.argsort(scores, kind="stable")
    paths, scores = [paths[row] for row in order], scores[order]
    images, bad = read_images(paths, range(len(paths)), preprocessing, cache, workers)
    usable, validates = images.usable, torch.zeros(len(images.usable), dtype=torch.bool)
    validates[::validation_every] = True
    found = scores[usable.numpy()]
    if len(found) > 1 and found[0] == found[-1]:
        count = len(found)
        raise ValueError(f"{source}: {what} that differ were expected; all {count} readable images have {found[0]:g}")
    if int((~validates).sum()) < 2 * processes.count():
        reasons = f" ({', '.join(sorted(set(bad.values())))})" if bad else ""
        raise ValueError(
            f"{source}: {len(usable)} of {len(paths)} images can be read{reasons}, too few to train on; check --images"
        )
    labels = torch.from_numpy(((scores - found[0]) / (found[-1] - found[0])).clip(0, 1)).float()
    train, validation = (replace(images, usable=usable[mask]) for mask in (~validates, validates))
    return ScoredImages(train, validation, labels, order), [(paths[row], status) for row, status in bad.items()]
