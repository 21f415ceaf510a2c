"""A given FR model as the teacher of a small backbone: its embeddings are what the backbone should reproduce.

This is not part of CR-FIQA. With few faces an FR model learns far more from a teacher's embeddings than from the names
of the identities; the identities still shape the class centres, and so CCS and NNCCS.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from labels.recognition import load_recognizer
from methods.cr_fiqa.data import Identities

BATCH = 128


def teacher_embeddings(source: str, identities: Identities, width: int, device: torch.device) -> Tensor:
    """The teacher's embeddings of all images and of their mirror images: unit vectors (N, 2, width).

    A teacher of fewer dimensions is carried into `width` by a fixed orthonormal map, which keeps all cosines. Rows of
    images that do not train are 0. Raises ValueError for a teacher of more dimensions, or of another image size, and
    when the images are not in memory.
    """
    teacher = load_recognizer(source, device=device)
    images = identities.images
    if images.cached is None:
        raise ValueError("--teacher looks at all images before the first step: it needs --cache yes")
    if teacher.width > width or teacher.preprocessing.size != images.preprocessing.size:
        size = teacher.preprocessing.size
        raise ValueError(
            f"--teacher {source} makes {teacher.width} numbers of {size}x{size} pixels; at most {width} numbers of "
            f"{images.preprocessing.size}x{images.preprocessing.size} pixels were expected"
        )
    carry = _orthonormal(teacher.width, width)
    targets = torch.zeros(len(images.paths), 2, width)
    for rows in _batches(images.usable):
        faces = images.cached[rows].numpy()
        for mirrored, view in enumerate((faces, np.ascontiguousarray(faces[:, :, ::-1]))):
            targets[rows, mirrored] = F.normalize(torch.from_numpy(teacher.embed(view)), dim=1) @ carry
    return targets


def class_centres(targets: Tensor, identities: Identities) -> Tensor:
    """The unit mean (C, D) of the teacher's embeddings of each class: where the header starts."""
    rows = identities.images.usable
    sums = torch.zeros(len(identities.classes), targets.shape[2])
    sums.index_add_(0, identities.labels[rows], targets[rows].sum(dim=1))
    return F.normalize(sums, dim=1)


def _batches(rows: Tensor) -> Iterator[Tensor]:
    yield from tqdm(rows.split(BATCH), "teacher", unit="batch", leave=False, disable=None)


def _orthonormal(inputs: int, outputs: int) -> Tensor:
    """A fixed random map (inputs, outputs) with orthonormal rows."""
    generator = torch.Generator().manual_seed(0)
    columns, _ = torch.linalg.qr(torch.randn(outputs, inputs, generator=generator))
    return columns.t()
