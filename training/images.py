"""The images of a training run: kept in memory or read in every epoch, in an order that a seed fixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from faces.reader import ImageError, read_image
from faces.workers import Loaded, Readers, load_batches
from model.preprocessing import Preprocessing
from training import processes
from training.console import progress

CACHE_BYTES = 2_000_000_000  # what `cache="auto"` may take
CHUNK = 64  # images that travel together from the readers
CROP = 112  # pixels of an aligned face

Cache = Literal["auto", "yes", "no"]
CacheSize = Literal["network", "crop"]
Sizes = Literal["even", "full"]


class Batch(NamedTuple):
    """One step. `rows` (B,) are table rows of the whole batch. `images` uint8 (b, S, S, 3), or with a frozen trunk its
    features (b, 2, L), and `flip` bool (b,) belong to this process's share of it; without torchrun b is B."""

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
    cached: Tensor | None  # uint8 (N, S, S, 3), or a frozen trunk's features (N, 2, L) (methods/clib_fiqa/frozen.py)
    read: Callable[[str], np.ndarray] = read_image
    replace_bad: bool = False  # another image of the batch replaces one that cannot be read; else that ends the run
    replaced: int = 0  # images that this process has replaced so far
    size: int = 0  # S, to which images are resized when they are read; 0: the network's
    _readers: Readers | None = field(default=None, repr=False)  # kept from epoch to epoch

    def steps(self, batch_size: int, sizes: Sizes = "even") -> int:
        """Batches of an epoch. With `even` sizes no share of one has fewer than two images, which batch statistics
        need. Raises ValueError when `full` ones cannot be filled."""
        if sizes == "full":
            if batch_size < 2 * processes.count() or len(self.usable) < batch_size:
                raise ValueError(
                    f"--batches full: {len(self.usable)} images and {processes.count()} processes cannot fill a batch "
                    f"of {batch_size} with two images for each process; give another --batch-size, or --batches even"
                )
            return len(self.usable) // batch_size
        return min(math.ceil(len(self.usable) / batch_size), len(self.usable) // (2 * processes.count()))

    def describe(self, batch_size: int, sizes: Sizes) -> str:
        """The steps of an epoch, and what it leaves out, for the log."""
        steps = self.steps(batch_size, sizes)
        dropped = len(self.usable) - steps * batch_size if sizes == "full" else 0
        left_out = f"; each leaves out {dropped} images, chosen at random" if dropped else ""
        return f"{steps} steps an epoch{left_out}"

    def batches(
        self,
        batch_size: int,
        seed: Sequence[int],
        flips: bool = True,
        sizes: Sizes = "even",
        done: int = 0,
        stop: int | None = None,
    ) -> Iterator[Batch]:
        """The usable rows once, in the order and with the horizontal flips (half of the images) of this seed.

        `even` batches hold all of them and differ by one image at most, so that none weighs more than its images
        should. `full` batches hold exactly `batch_size`; the rows that are left over are dropped in this epoch. With
        `replace_bad` the rows of this process's share say which images it really has. The first `done` batches are
        left out, and those from `stop` on; their images are not read.
        """
        generator = torch.Generator().manual_seed(mixed_seed(seed))
        order = self.usable[torch.randperm(len(self.usable), generator=generator)]
        flip = (torch.rand(len(order), generator=generator) < 0.5) & flips
        steps = self.steps(batch_size, sizes)
        used = steps * batch_size if sizes == "full" else len(order)
        rows, masks = (one[:used].tensor_split(steps)[done:stop] for one in (order, flip))
        images = self._images([processes.share(batch) for batch in rows])
        for batch, pictures, mask in zip(rows, images, masks, strict=True):
            yield Batch(batch, pictures, processes.share(mask))

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All usable rows in their order: rows (B,), B up to `size`, and the images uint8 (b, S, S, 3) of this
        process's share of them, which may be empty."""
        rows = self.usable.split(size)
        yield from zip(rows, self._images([processes.share(batch) for batch in rows]), strict=True)

    def close(self) -> None:
        """End the worker processes."""
        if self._readers is not None:
            self._readers.close()
            self._readers = None

    def _images(self, shares: Sequence[Tensor]) -> Iterator[Tensor]:
        if self.cached is not None:
            yield from (self.cached[rows] for rows in shares)
            return
        if self._readers is None:
            self._readers = Readers(_prepare(self.preprocessing, self.size), self.workers, self.read)
        paths = (self.paths[row] for rows in shares for row in rows.tolist())
        images = chain.from_iterable(self._readers.batches(paths, CHUNK))
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
        if not len(rows):
            size = self.size or self.preprocessing.size
            return torch.zeros(0, size, size, 3, dtype=torch.uint8)
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
    cache_size: CacheSize = "network",
) -> tuple[Images, dict[int, str]]:
    """The images at these rows of `paths`, and the status of each row that cannot be read.

    Every one is read once, so that a bad one is found now and not in the middle of the run. An image that any process
    cannot read is bad for all of them, so that all train on the same rows. `crop` keeps aligned crops of 112x112 as
    they are and leaves enlarging them to the device; images of another size have the status `not_112x112`.
    """
    size = CROP if cache_size == "crop" else preprocessing.size
    keep = keeps(cache, len(rows), size)
    cached = np.empty((len(paths), size, size, 3), np.uint8) if keep else None
    prepare = _prepare(preprocessing, size) if keep or size != preprocessing.size else _discard
    # Images that are not kept are only tested, each by one of the processes.
    mine = list(rows) if keep else processes.share(torch.tensor(rows, dtype=torch.int64)).tolist()
    images = load_batches([paths[row] for row in mine], prepare, CHUNK, workers, read)
    found: dict[int, str] = {}
    bar = progress(chain.from_iterable(images), "reading images", len(mine), "image")
    for row, image in zip(mine, bar, strict=True):
        if image.status != "ok":
            found[row] = image.status
        elif cached is not None and image.value is not None:
            cached[row] = image.value
    bad = processes.merge(found)
    bad = {row: bad[row] for row in sorted(bad)}
    usable = torch.tensor([row for row in rows if row not in bad], dtype=torch.int64)
    pixels = None if cached is None else torch.from_numpy(cached)
    return Images(paths, usable, preprocessing, workers, pixels, read, size=size), bad


def keeps(cache: Cache, count: int, size: int) -> bool:
    """Whether so many images of `size` x `size` pixels stay in memory."""
    return cache == "yes" or (cache == "auto" and count * size**2 * 3 <= CACHE_BYTES)


def _prepare(preprocessing: Preprocessing, size: int) -> Callable[[np.ndarray], Any]:
    """What happens to an image when it is read: resized to the network's size, or left as a crop of `size`."""
    return preprocessing.resize if size in (0, preprocessing.size) else partial(_only_of_size, size=size)


def _only_of_size(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        raise ImageError(f"not_{size}x{size}", f"a crop of {size}x{size} pixels was expected, not {width}x{height}")
    return image


def _discard(image: np.ndarray) -> None:
    """Reading was the test; the pixels are not kept."""
