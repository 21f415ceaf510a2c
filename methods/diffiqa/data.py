"""The training data of the diffusion model: faces, and damaged versions of them, in an order that a seed fixes."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from faces.degradations import SIZE, compress, degrade
from faces.listing import expand_inputs
from faces.reader import read_image
from faces.workers import as_it_is, load_batches
from model.files import names_in
from model.preprocessing import Preprocessing
from training import processes
from training.step import TrainingError

AGAIN = (1.0, 0.2, 0.01)  # probabilities of a first, a second and a third round of damage
BLURS = ("gaussian_blur", "motion_blur")


class Pairs(NamedTuple):
    """This process's share of a batch: RGB uint8 images (b, S, S, 3) of low and of high quality, and which of the
    batch they are (b,)."""

    low: Tensor
    high: Tensor
    places: Tensor


def find_images(arguments: Sequence[str], identities: Sequence[str]) -> list[str]:
    """The paths of the images, in the order of the arguments; `identities` are files that name the folders to take.

    Raises ValueError when there are none, or when none of them exists.
    """
    paths = list(expand_inputs(arguments, sys.stdin))
    if identities:
        wanted = names_in(identities)
        paths = [path for path in paths if Path(path).parent.name in wanted]
    if not paths:
        raise ValueError(f"--data {','.join(arguments)}: no images were found, or none of the --identities")
    if not any(Path(path).exists() for path in paths):
        raise ValueError(f"--data {paths[0]}: no such file or folder; a folder of faces was expected")
    return paths


def batches(
    paths: Sequence[str], preprocessing: Preprocessing, size: int, seed: int, done: int, workers: int
) -> Generator[Pairs, None, None]:
    """Batches of `size` images without end, beginning after `done` batches.

    Every pass over the images has an order of its own. Order, flips and damage follow from the seed, whatever the
    number of workers and processes. Images that cannot be read are left out. Raises TrainingError when a whole batch
    cannot be read.
    """
    places = processes.share(torch.arange(size))
    stream = (draw for batch in _order(len(paths), size, seed, done) for draw in batch[places].tolist())
    names = (f"{number} {paths[row]}" for number, row in stream)
    read = partial(_read_pair, preprocessing, seed)
    for loaded in load_batches(names, as_it_is, len(places), workers, read):
        good = [index for index, item in enumerate(loaded) if item.value is not None]
        if not good:
            first = loaded[0].path.split(" ", 1)[1]
            raise TrainingError(f"no image of a batch can be read; {first} is {loaded[0].status}")
        pairs = torch.from_numpy(np.stack([item.value for item in loaded if item.value is not None]))
        yield Pairs(pairs[:, 0], pairs[:, 1], places[good])


def damage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A face of low quality, from an aligned crop (112, 112, 3): blur, low resolution and noise in a random order, each
    with a probability of one half, then JPEG; and with small probabilities all again."""
    for probability in AGAIN:
        if rng.random() < probability:
            image = _damage_once(image, rng)
    return image


def _damage_once(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kinds = rng.permutation([rng.choice(BLURS), "low_resolution", "noise"]).tolist()
    for kind in [kind for kind in kinds if rng.random() < 0.5]:
        image = degrade(image, kind, rng.random(), rng)
    return compress(image, int(rng.integers(10, 96)))


def _order(images: int, size: int, seed: int, done: int) -> Iterator[np.ndarray]:
    """Batches after the first `done`: (number of the draw, row) int64 (size, 2)."""
    order, epoch = np.empty(0, np.int64), -1
    for batch in count(done):
        numbers = np.arange(batch * size, (batch + 1) * size)
        rows = np.empty(size, np.int64)
        for place, number in enumerate(numbers.tolist()):
            if number // images != epoch:
                epoch = number // images
                order = np.random.default_rng((seed, epoch)).permutation(images)
            rows[place] = order[number % images]
        yield np.stack([numbers, rows], axis=1)


def _read_pair(preprocessing: Preprocessing, seed: int, name: str) -> np.ndarray:
    """`NUMBER PATH` -> (2, S, S, 3): the damaged image and the image, perhaps both mirrored."""
    number, path = name.split(" ", 1)
    rng = np.random.default_rng((seed, int(number), 1))
    crop = Preprocessing(SIZE, preprocessing.mean, preprocessing.std)
    high = crop.resize(read_image(path))
    high = np.ascontiguousarray(high[:, ::-1]) if rng.random() < 0.5 else high
    return np.stack([preprocessing.resize(image) for image in (damage(high, rng), high)])
