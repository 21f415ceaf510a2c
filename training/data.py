"""From a label table to batches: normalised anchors, factor labels and the images, in an order that a seed fixes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from faces.label_table import read_labels, resolve
from faces.loading import load_batches
from faces.reader import ImageError
from model.preprocessing import Preprocessing
from training.losses import TASKS
from training.parallel import processes, rank, share

CACHE_BYTES = 2_000_000_000  # what `cache="auto"` may take
CHUNK = 64  # images that travel together from the readers


class Batch(NamedTuple):
    """One step. `rows` (B,) are table rows of the whole batch; `images` uint8 (b, S, S, 3) and `flip` bool (b,) belong
    to this process's share of it, which without torchrun is the same."""

    rows: Tensor
    images: Tensor
    flip: Tensor


@dataclass
class Faces:
    """A label table, row for row: `paths`, `quality` (N,) in [0, 1] (NaN without an anchor) and `factors` int64 (N, 5)
    in the order of `TASKS[1:]`. Only the rows in `usable` have both an anchor and a readable image."""

    paths: list[str]
    quality: Tensor
    factors: Tensor
    usable: Tensor
    preprocessing: Preprocessing
    workers: int
    cached: Tensor | None  # uint8 (N, S, S, 3)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch: no share of one has fewer than two images, which batch statistics need."""
        return min(math.ceil(len(self.usable) / batch_size), len(self.usable) // (2 * processes()))

    def batches(self, batch_size: int, seed: Sequence[int], flips: bool = True) -> Iterator[Batch]:
        """All usable rows once, in the order and with the horizontal flips (half of the images) of this seed.

        The batches differ by one image at most, so that none weighs more than its images should.
        """
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        order = self.usable[torch.randperm(len(self.usable), generator=generator)]
        flip = (torch.rand(len(order), generator=generator) < 0.5) & flips
        rows = order.tensor_split(self.steps(batch_size))
        masks = flip.tensor_split(self.steps(batch_size))
        images = self._images([share(batch) for batch in rows])
        for batch, pictures, mask in zip(rows, images, masks, strict=True):
            yield Batch(batch, pictures, share(mask))

    def _images(self, shares: Sequence[Tensor]) -> Iterator[Tensor]:
        if self.cached is not None:
            yield from (self.cached[rows] for rows in shares)
            return
        paths = [self.paths[row] for row in torch.cat(list(shares)).tolist()]
        images = chain.from_iterable(load_batches(paths, self.preprocessing.resize, CHUNK, self.workers))
        for rows in shares:
            batch = list(islice(images, len(rows)))
            for image in batch:
                if image.value is None:
                    raise ImageError(image.status, f"{image.path} could be read when the run began: {image.status} now")
            yield torch.from_numpy(np.stack([image.value for image in batch if image.value is not None]))


def read_faces(
    table: str | Path,
    preprocessing: Preprocessing,
    *,
    normalise: Literal["minmax", "percentile", "none"] = "minmax",
    cache: Literal["auto", "yes", "no"] = "auto",
    workers: int = 0,
) -> tuple[Faces, list[tuple[str, str]]]:
    """The faces of a label table, and the (path, status) of its rows that cannot train.

    Every image is read once, so that a bad one is found now and not in the middle of the run: its status is the
    reader's; a row without an anchor has status `no_quality`. Raises ValueError when too few rows are left.
    """
    if not Path(table).is_file():
        raise ValueError(f"--data-list {table}: no such file; generate_labels.py writes a label table")
    labels = read_labels(table)
    rows = [row for row, label in enumerate(labels) if label.quality is not None]
    skipped = [(label.path, "no_quality") for label in labels if label.quality is None]
    raw = [math.nan if label.quality is None else label.quality for label in labels]
    size = preprocessing.size
    keep = cache == "yes" or (cache == "auto" and len(rows) * size * size * 3 <= CACHE_BYTES)
    cached = np.empty((len(labels), size, size, 3), np.uint8) if keep else None

    paths = [str(resolve(label, table)) for label in labels]
    images = load_batches([paths[row] for row in rows], preprocessing.resize if keep else _discard, CHUNK, workers)
    usable = []
    hidden = rank() > 0 or None  # None: where stderr is no terminal
    progress = tqdm(chain.from_iterable(images), "reading images", len(rows), unit="image", leave=False, disable=hidden)
    for row, image in zip(rows, progress, strict=True):
        if image.status != "ok":
            skipped.append((labels[row].path, image.status))
            continue
        usable.append(row)
        if cached is not None and image.value is not None:
            cached[row] = image.value
    if len(usable) < 2 * processes():
        reasons = sorted({status for _, status in skipped})
        raise ValueError(
            f"{table} has {len(usable)} rows with a quality and a readable image out of {len(labels)}"
            f"{' (' + ', '.join(reasons) + ')' if reasons else ''}; training needs {2 * processes()} or more"
        )
    factors = torch.tensor([[getattr(label, factor) for factor in TASKS[1:]] for label in labels])
    quality = normalise_quality(torch.tensor(raw, dtype=torch.float64), normalise).float()
    pixels = None if cached is None else torch.from_numpy(cached)
    return Faces(paths, quality, factors, torch.tensor(usable), preprocessing, workers, pixels), skipped


def normalise_quality(quality: Tensor, method: Literal["minmax", "percentile", "none"] = "minmax") -> Tensor:
    """Anchors (N,), NaN where there is none, to [0, 1].

    `minmax` by the extremes of the table (published; one outlier moves all), `percentile` by its 1st and 99th
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


def _discard(image: np.ndarray) -> None:
    """Reading was the test; the pixels are not kept."""
