"""A given FR model as the teacher of a small backbone: its embeddings are what the backbone should reproduce.

This is not part of CR-FIQA. With few faces an FR model learns far more from a teacher's embeddings than from the names
of the identities; the identities still shape the class centres, and so CCS and NNCCS.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from labels.recognition import load_recognizer
from methods.cr_fiqa.data import Identities
from training import processes
from training.console import counter

BATCH = 128


def teacher_embeddings(source: str, identities: Identities, width: int, device: torch.device) -> Tensor:
    """The teacher's embeddings of all images and of their mirror images: unit vectors (N, 2, width) on the device.

    Each process computes a share of them. A teacher of fewer dimensions is mapped into `width` by a fixed orthonormal
    map, which keeps all cosines. Rows of images that do not train are 0. Raises ValueError for a teacher of more
    dimensions, or of another image size, and when the images are not in memory.
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
    with counter("teacher", len(images.usable), "image") as bar:
        for rows, faces in images.in_order(BATCH * processes.count()):
            own = torch.zeros(len(faces), 2, width)
            for mirrored, view in enumerate((faces, faces.flip(2)) if len(faces) else ()):
                embeddings = torch.from_numpy(teacher.embed(view.contiguous().numpy()))
                own[:, mirrored] = F.normalize(embeddings, dim=1) @ carry
            targets[rows] = processes.gather(own.to(device), len(rows)).cpu()
            bar.update(len(rows))
    return targets.to(device)


def class_centres(targets: Tensor, identities: Identities) -> Tensor:
    """The unit mean (C, D) of the teacher's embeddings of each class: where the header starts."""
    rows = identities.images.usable.to(targets.device)
    sums = targets.new_zeros(len(identities.classes), targets.shape[2])
    sums.index_add_(0, identities.labels[rows], targets[rows].sum(dim=1))
    return F.normalize(sums, dim=1)


def _orthonormal(inputs: int, outputs: int) -> Tensor:
    """A fixed random map (inputs, outputs) with orthonormal rows."""
    generator = torch.Generator().manual_seed(0)
    columns, _ = torch.linalg.qr(torch.randn(outputs, inputs, generator=generator))
    return columns.t()
