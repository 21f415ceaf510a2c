"""Quality anchors: how well a face belongs to its class (CR-FIQA, Boutros et al., CVPR 2023; CLIB-FIQA, CVPR 2024).

CCS is the cosine of an embedding to the centre of its own class, NNCCS that to the nearest centre of another class.
The classes come from the header that the FR model was trained with, or, without one, from the faces themselves.

A path is relative to the folder of faces: its parent is the identity. `Name/0001~blur.jpg` is a version of the
photograph `Name/0001`: what stands before the first `~` of the file's name tells the photograph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path, PurePath

import numpy as np
import torch

from model import load
from model.iresnet import ArcFaceHeader
from model.weights import find_weights

NNCCS_MIN = 1e-3          # `ratio` counts a smaller NNCCS as this, so that an anchor is at most 1000
EPSILON = 1e-9            # of `shifted`
BLOCK_ELEMENTS = 1 << 24  # of a block of cosines, images x classes: 64 MB


@dataclass(frozen=True)
class EmbeddedFaces:
    """Embeddings (N, D) of any length, and the relative path of each."""

    embeddings: np.ndarray
    paths: Sequence[str]

    def where(self, mask: Sequence[bool] | np.ndarray) -> EmbeddedFaces:
        """Those whose entry in the mask (N,) is true."""
        return EmbeddedFaces(self.embeddings[np.asarray(mask, bool)], list(compress(self.paths, mask)))

    def joined(self, other: EmbeddedFaces) -> EmbeddedFaces:
        """These, then the others."""
        return EmbeddedFaces(np.concatenate([self.embeddings, other.embeddings]), [*self.paths, *other.paths])


def identity_of(path: str) -> str:
    """The folder of an image, or "" for one that lies in the folder of faces itself and so has no identity."""
    parent = PurePath(path).parent.as_posix()
    return "" if parent == "." else parent


def photo_of(path: str) -> str:
    """What all versions of a photograph share: folder, and file name up to the first `~`, without the suffix."""
    stem = PurePath(path).stem
    return f"{identity_of(path)}/{stem.split('~')[0] or stem}"


def count_photos(paths: Iterable[str]) -> Counter[str]:
    """How many photographs each identity has; versions of one photograph count once."""
    return Counter(identity for identity, _ in {(identity_of(path), photo_of(path)) for path in paths})


def quality_anchor(ccs: np.ndarray, nnccs: np.ndarray, kind: str = "ratio") -> np.ndarray:
    """CCS / NNCCS (`ratio`: CLIB-FIQA, and CR-FIQA's code) or CCS / (NNCCS + 1 + 1e-9) (`shifted`: CR-FIQA's paper).

    Always finite. Where no other class is near, the published ratio divides by -1e-12 and its sign flips; here the
    divisor is at least 1e-3. `shifted` needs no such guard.
    """
    if kind == "shifted":
        return ccs / (nnccs + 1 + EPSILON)
    assert kind == "ratio", f"an anchor is ratio or shifted, not {kind}"
    return ccs / np.maximum(nnccs, NNCCS_MIN)


def centre_similarities(faces: EmbeddedFaces, gallery: EmbeddedFaces) -> tuple[np.ndarray, np.ndarray]:
    """CCS and NNCCS (N,) of faces against the class centres of a gallery, in [-1, 1].

    A centre is the normalised mean of the normalised embeddings of an identity. For its own CCS a face is compared
    with the centre of the other photographs: all versions of its own are left out. The identity of every face needs
    such another photograph, and the gallery needs two identities (ValueError).
    """
    classes, photos = _index(map(identity_of, gallery.paths)), _index(map(photo_of, gallery.paths))
    if len(classes) < 2:
        raise ValueError(f"anchors compare identities, and {', '.join(classes) or 'none'} is all there is: add others")
    unit = _unit(gallery.embeddings)
    sums = _sum_rows(unit, [classes[identity_of(path)] for path in gallery.paths], len(classes), np.float64)
    photo_sums = _sum_rows(unit, [photos[photo_of(path)] for path in gallery.paths], len(photos) + 1, np.float32)
    centres = _unit(sums).astype(np.float32)
    own = np.array([classes[identity_of(path)] for path in faces.paths])
    left_out = np.array([photos.get(photo_of(path), len(photos)) for path in faces.paths])   # the last row is zero

    ccs, nnccs = np.empty((2, len(faces.paths)))
    for block in _blocks(len(faces.paths), len(classes)):
        embeddings = _unit(faces.embeddings[block])
        ccs[block] = (embeddings * _unit(sums[own[block]] - photo_sums[left_out[block]])).sum(axis=1)
        cosines = embeddings @ centres.T
        np.put_along_axis(cosines, own[block, None], -np.inf, axis=1)
        nnccs[block] = cosines.max(axis=1)
    return ccs.clip(-1, 1), nnccs.clip(-1, 1)


@dataclass(frozen=True)
class Header:
    """The class centres that an FR model was trained with, and the class of each identity that it knows."""

    network: ArcFaceHeader
    classes: Mapping[str, int]

    def similarities(self, faces: EmbeddedFaces) -> tuple[np.ndarray, np.ndarray]:
        """CCS and NNCCS (N,) of faces, in [-1, 1]."""
        own = torch.tensor([self.classes[identity_of(path)] for path in faces.paths])
        ccs, nnccs = np.empty((2, len(faces.paths)))
        for block in _blocks(len(faces.paths), self.network.kernel.shape[1]):
            cosines = self.network.similarities(torch.from_numpy(faces.embeddings[block]), own[block])
            ccs[block], nnccs[block] = (values[:, 0].numpy() for values in cosines)
        return ccs, nnccs


def load_header(path: str | Path, width: int, identities: Iterable[str]) -> Header:
    """The header of an FR model whose embeddings have `width` numbers, for faces of these identities.

    The class of an identity is its line in `{step}classes.txt` beside `{step}header.pth`; without that file the names
    of the folders are the indices of the classes. Raises ValueError for a header or a list that does not fit, when none
    of the identities is in the list, and without a list for every name that is no index of a class.
    """
    path = find_weights(path)
    network, names = load(path), sorted(set(identities))
    if not isinstance(network, ArcFaceHeader) or network.kernel.shape[0] != width or network.kernel.shape[1] < 2:
        raise ValueError(f"{path} is no header (kernel ({width}, classes), at least two classes) for this FR model")
    count = network.kernel.shape[1]
    listing = path.with_name(path.stem.replace("header", "classes") + ".txt")
    if listing.is_file():
        lines = listing.read_text(encoding="utf-8").splitlines()
        if len(lines) != count:
            raise ValueError(f"{listing} names {len(lines)} classes, the header {path} has {count}")
        classes = {name: index for index, name in enumerate(lines)}
        if len(classes) < count:
            raise ValueError(f"{listing} names a class twice: {_some(n for n, k in Counter(lines).items() if k > 1)}")
        if not classes.keys() & set(names):
            raise ValueError(f"the header {path} knows none of the identities, such as {_some(names)}; see {listing}")
        return Header(network, classes)
    if other := [name for name in names if not (name.isdecimal() and int(name) < count)]:
        raise ValueError(
            f"{_some(other)}: which of the {count} classes of {path} is that? "
            f"Put the identities, one a line in the order of the classes, into {listing}; "
            f"without that file folders must be named by the index of their class"
        )
    return Header(network, {name: int(name) for name in names})


def _some(names: Iterable[str], limit: int = 5) -> str:
    first, rest = list(islice(iterator := iter(names), limit)), sum(1 for _ in iterator)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _index(keys: Iterable[str]) -> dict[str, int]:
    return {key: row for row, key in enumerate(sorted(set(keys)))}


def _sum_rows(rows: np.ndarray, groups: Sequence[int], count: int, dtype: type) -> np.ndarray:
    """The sum of the rows (N, D) of each group: (count, D)."""
    sums: np.ndarray = np.zeros((count, rows.shape[1]), dtype)
    np.add.at(sums, np.asarray(groups), rows)
    return sums


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    """Slices of the rows, such that memory does not grow with rows x classes."""
    size = max(1, BLOCK_ELEMENTS // classes)
    return (slice(start, start + size) for start in range(0, rows, size))
