"""The images of a training run: read once and kept or read anew each epoch, in an order that a seed fixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from faces.reader import ImageError, read_image
from faces.workers import Loaded, load_batches
from model.preprocessing import Preprocessing
from training import processes

CACHE_BYTES = 2_000_000_000  # what `cache="auto"` may take
CHUNK = 64  # images that travel together from the readers

Cache = Literal["auto", "yes", "no"]


class Batch(NamedTuple):
    """One step. `rows` (B,) are table rows of the whole batch; `images` uint8 (b, S, S, 3), or with a frozen trunk its
    levels (b, 2, L), and `flip` bool (b,) belong to this process's share of it, which without torchrun is the same."""

    rows: Tensor
    images: Tensor
    flip: Tensor


@dataclass
class Images:
    """N images, of which the rows in `usable` train. `paths` are what `read` takes: files, or names of its own."""

    paths: Sequence[str]
    usable: Tensor
    preprocessing: Preprocessing
    workers: int
    cached: Tensor | None  # uint8 (N, S, S, 3), or levels (N, 2, L) in their place (methods/clib_fiqa/frozen.py)
    read: Callable[[str], np.ndarray] = read_image
    replace_bad: bool = False  # an image that cannot be read gives its place to a neighbour, else it ends the run
    replaced: int = 0  # images to which this has happened in this process

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch: no share of one has fewer than two images, which batch statistics need."""
        return min(math.ceil(len(self.usable) / batch_size), len(self.usable) // (2 * processes.count()))

    def batches(self, batch_size: int, seed: Sequence[int], flips: bool = True) -> Iterator[Batch]:
        """All usable rows once, in the order and with the horizontal flips (half of the images) of this seed.

        The batches differ by one image at most, so that none weighs more than its images should. With `replace_bad`
        the rows of this process's share say which images it really has.
        """
        generator = torch.Generator().manual_seed(mixed_seed(seed))
        order = self.usable[torch.randperm(len(self.usable), generator=generator)]
        flip = (torch.rand(len(order), generator=generator) < 0.5) & flips
        rows = order.tensor_split(self.steps(batch_size))
        masks = flip.tensor_split(self.steps(batch_size))
        images = self._images([processes.share(batch) for batch in rows])
        for batch, pictures, mask in zip(rows, images, masks, strict=True):
            yield Batch(batch, pictures, processes.share(mask))

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All usable rows in their order: rows (B,) and images uint8 (B, S, S, 3), B up to `size`."""
        rows = self.usable.split(size)
        yield from zip(rows, self._images(rows), strict=True)

    def _images(self, shares: Sequence[Tensor]) -> Iterator[Tensor]:
        if self.cached is not None:
            yield from (self.cached[rows] for rows in shares)
            return
        paths = (self.paths[row] for rows in shares for row in rows.tolist())
        batches = load_batches(paths, self.preprocessing.resize, CHUNK, self.workers, self.read)
        images = chain.from_iterable(batches)
        for rows in shares:
            yield self._stack(rows, list(islice(images, len(rows))))

    def _stack(self, rows: Tensor, images: Sequence[Loaded[np.ndarray]]) -> Tensor:
        good = [position for position, image in enumerate(images) if image.value is not None]
        for position, image in enumerate(images):
            if image.value is None and not (self.replace_bad and good):
                raise ImageError(image.status, f"{image.path} could be read when the run began: {image.status} now")
            if image.value is None:
                rows[position] = rows[good[position % len(good)]]
                self.replaced += 1
        values = {int(row): image.value for row, image in zip(rows, images, strict=True) if image.value is not None}
        return torch.from_numpy(np.stack([values[row] for row in rows.tolist()]))


def mixed_seed(seed: Sequence[int]) -> int:
    """One seed of several numbers, far from those of numbers nearby."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def read_images(
    paths: Sequence[str],
    rows: Sequence[int],
    preprocessing: Preprocessing,
    cache: Cache,
    workers: int,
    read: Callable[[str], np.ndarray] = read_image,
) -> tuple[Images, dict[int, str]]:
    """The images at these rows of `paths`, and the status of each row that cannot be read.

    Every one is read once, so that a bad one is found now and not in the middle of the run.
    """
    size, keep = preprocessing.size, keeps(cache, len(rows), preprocessing)
    cached = np.empty((len(paths), size, size, 3), np.uint8) if keep else None
    prepare = preprocessing.resize if keep else _discard
    images = load_batches([paths[row] for row in rows], prepare, CHUNK, workers, read)
    usable, bad = [], {}
    hidden = processes.rank() > 0 or None  # None: where stderr is no terminal
    progress = tqdm(chain.from_iterable(images), "reading images", len(rows), unit="image", leave=False, disable=hidden)
    for row, image in zip(rows, progress, strict=True):
        if image.status != "ok":
            bad[row] = image.status
            continue
        usable.append(row)
        if cached is not None and image.value is not None:
            cached[row] = image.value
    pixels = None if cached is None else torch.from_numpy(cached)
    return Images(paths, torch.tensor(usable, dtype=torch.int64), preprocessing, workers, pixels, read), bad


def keeps(cache: Cache, count: int, preprocessing: Preprocessing) -> bool:
    """Whether so many images stay in memory."""
    return cache == "yes" or (cache == "auto" and count * preprocessing.size**2 * 3 <= CACHE_BYTES)


def _discard(image: np.ndarray) -> None:
    """Reading was the test; the pixels are not kept."""
