"""Quality anchors: how well a face fits its class (CR-FIQA, Boutros et al., CVPR 2023; CLIB-FIQA, CVPR 2024).

CCS is the cosine of an embedding to the centre of its own class. NNCCS is the cosine to the nearest other centre.
The centres come from the header that the FR model was trained with, or else from the faces themselves.

A path is relative to the folder of faces: its parent is the identity. `Name/0001~blur.jpg` is a version of the
photograph `Name/0001`: the part of the file name before the first `~` identifies the photograph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from model import load
from model.files import read_names
from model.iresnet import ArcFaceHeader, similarities_to
from model.weights import find_weights

NNCCS_MIN = 1e-3          # `ratio` counts a smaller NNCCS as this, so that an anchor is at most 1000
EPSILON = 1e-9            # of `shifted`
BLOCK_ELEMENTS = 1 << 24  # of a block of cosines, images x classes: 64 MB
BLOCK_ROWS = 8192         # embeddings that are in memory at once: 34 MB in float64, for 512 numbers


class EmbeddedFaces:
    """Embeddings (N, D) of any length, and the relative path of each.

    The array may be memory-mapped and larger than the memory. A selection shares it and keeps the numbers of its `rows`
    in it; `block` and `embeddings` copy rows.
    """

    def __init__(self, embeddings: np.ndarray, paths: Sequence[str], rows: np.ndarray | None = None) -> None:
        self.paths = paths
        self._stored = embeddings
        self.rows = np.arange(len(embeddings)) if rows is None else rows   # of the array, one for each path

    @property
    def embeddings(self) -> np.ndarray:
        """All embeddings (N, D), as a copy."""
        return self._stored[self.rows]

    @property
    def width(self) -> int:
        """D."""
        return int(self._stored.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, part: slice | np.ndarray) -> np.ndarray:
        """The embeddings of a part of the faces, by slice or by their numbers: (n, D), a copy."""
        return np.asarray(self._stored[self.rows[part]])

    def where(self, mask: Sequence[bool] | np.ndarray) -> EmbeddedFaces:
        """Those whose entry in the mask (N,) is true."""
        kept = np.flatnonzero(np.asarray(mask, bool))
        return EmbeddedFaces(self._stored, [self.paths[row] for row in kept.tolist()], self.rows[kept])


def identity_of(path: str) -> str:
    """The folder of an image, or "" for one that lies in the folder of faces itself and so has no identity."""
    parent = PurePath(path).parent.as_posix()
    return "" if parent == "." else parent


def photo_of(path: str) -> str:
    """The name that all versions of a photograph share: folder, and file name up to the first `~`, without suffix."""
    stem = PurePath(path).stem
    return f"{identity_of(path)}/{stem.split('~')[0] or stem}"


def count_photos(paths: Iterable[str]) -> Counter[str]:
    """How many photographs each identity has; versions of one photograph count once."""
    return Counter(photo.rpartition("/")[0] for photo in set(map(photo_of, paths)))


def quality_anchor(ccs: np.ndarray, nnccs: np.ndarray, kind: str = "ratio") -> np.ndarray:
    """CCS / NNCCS (`ratio`: CLIB-FIQA, and CR-FIQA's code) or CCS / (NNCCS + 1 + 1e-9) (`shifted`: CR-FIQA's paper).

    Always finite. Where NNCCS <= 0, the published ratio divides by -1e-12 and its sign flips. Here the divisor is at
    least 1e-3. `shifted` needs no such limit.
    """
    if kind == "shifted":
        return ccs / (nnccs + 1 + EPSILON)
    assert kind == "ratio", f"an anchor is ratio or shifted, not {kind}"
    return ccs / np.maximum(nnccs, NNCCS_MIN)


def centre_similarities(
    faces: EmbeddedFaces, *galleries: EmbeddedFaces, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """CCS and NNCCS (N,) of faces against the class centres of the galleries together, in [-1, 1].

    A centre is the normalised mean of the normalised embeddings of an identity. For its own CCS a face is compared
    with the centre of the other photographs: all versions of its own are left out. The identity of every face needs
    such another photograph, and the galleries need two identities (ValueError). Memory grows with the identities,
    not with faces x (identities or D).
    """
    paths = [path for gallery in galleries for path in gallery.paths]
    classes = _index(map(identity_of, paths))
    if len(classes) < 2:
        found = f"only {next(iter(classes))} has a face that can be used" if classes else "no face can be used"
        raise ValueError(f"anchors compare two identities or more, and {found}")
    members = np.array([classes[identity_of(path)] for path in paths])
    sums = _sum_by_class(galleries, members, len(classes))
    centres = torch.from_numpy(_unit(sums).astype(np.float32).T).to(device)
    photos = _PhotoSums(faces, galleries)
    own = np.array([classes[identity_of(path)] for path in faces.paths])

    ccs, nnccs = np.empty((2, len(faces)))
    for block in _blocks(len(faces), len(classes)):
        embeddings = _unit(faces.block(block))
        ccs[block] = (embeddings * _unit(sums[own[block]] - photos.of(block))).sum(axis=1)
        nnccs[block] = _similarities(centres, embeddings, own[block])[1]
    return ccs.clip(-1, 1), nnccs


@dataclass(frozen=True)
class Header:
    """The class centres that an FR model was trained with, and the class of each identity that it knows."""

    network: ArcFaceHeader
    classes: Mapping[str, int]

    def similarities(self, faces: EmbeddedFaces) -> tuple[np.ndarray, np.ndarray]:
        """CCS and NNCCS (N,) of faces, in [-1, 1]. Computed on the device of the network."""
        own = np.array([self.classes[identity_of(path)] for path in faces.paths])
        with torch.no_grad():
            centres = self.network.centres()
        ccs, nnccs = np.empty((2, len(faces)))
        for block in _blocks(len(faces), centres.shape[1]):
            ccs[block], nnccs[block] = _similarities(centres, _unit(faces.block(block)), own[block])
        return ccs, nnccs


def _similarities(centres: Tensor, embeddings: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CCS and NNCCS (n,) of embeddings (n, D) with L2 norm 1 of the classes own (n,), on the device of the centres."""
    rows, labels = (torch.from_numpy(array).to(centres.device) for array in (embeddings, own))
    ccs, nnccs = similarities_to(centres, rows.to(centres.dtype), labels)
    return ccs[:, 0].cpu().numpy(), nnccs[:, 0].cpu().numpy()


def load_header(
    path: str | Path, width: int, identities: Iterable[str], device: str | torch.device = "cpu"
) -> Header:
    """The header of an FR model whose embeddings have `width` numbers, for faces of these identities, on a device.

    The class of an identity is its line in `{step}classes.txt` beside `{step}header.pth`; without that file the names
    of the folders are the indices of the classes. Raises ValueError for a header or a list that does not fit, when none
    of the identities is in the list, and without a list for every name that is no index of a class.
    """
    path = find_weights(path)
    network, names = load(path), sorted(set(identities))
    if not isinstance(network, ArcFaceHeader) or network.kernel.shape[0] != width or network.kernel.shape[1] < 2:
        raise ValueError(f"{path} is no header (kernel ({width}, classes), at least two classes) for this FR model")
    network, count = network.to(device), network.kernel.shape[1]
    listing = path.with_name(path.stem.replace("header", "classes") + ".txt")
    if listing.is_file():
        lines = read_names(listing)
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


def _sum_by_class(galleries: Sequence[EmbeddedFaces], members: np.ndarray, classes: int) -> np.ndarray:
    """The sum of the normalised embeddings of each class: (classes, D), float64. `members`: the class of each face."""
    sums: np.ndarray = np.zeros((classes, galleries[0].width))
    start = 0
    for gallery in galleries:
        for block in _blocks(len(gallery), 1):
            unit = _unit(gallery.block(block))
            np.add.at(sums, members[start : start + len(unit)], unit)
            start += len(unit)
    return sums


class _PhotoSums:
    """The sum of the gallery's normalised embeddings of the photograph that each face is a version of."""

    def __init__(self, faces: EmbeddedFaces, galleries: Sequence[EmbeddedFaces]) -> None:
        photos = _index(map(photo_of, faces.paths))
        self.galleries = galleries
        self.face_photos = np.array([photos[photo_of(path)] for path in faces.paths])
        self.members = []   # for each gallery: its rows, sorted by photograph, and where each photograph starts
        for gallery in galleries:
            own = np.array([photos.get(photo_of(path), len(photos)) for path in gallery.paths])
            order = np.argsort(own, kind="stable")
            self.members.append((order, np.searchsorted(own[order], np.arange(len(photos) + 1))))

    def of(self, block: slice) -> np.ndarray:
        """(n, D) float32 for the faces of a block; zero for a photograph that no gallery has."""
        photos = self.face_photos[block]
        sums: np.ndarray = np.zeros((len(photos), self.galleries[0].width), np.float32)
        for gallery, (order, starts) in zip(self.galleries, self.members, strict=True):
            counts = starts[photos + 1] - starts[photos]
            faces = np.repeat(np.arange(len(photos)), counts)            # which face of the block each member is for
            first = np.repeat(starts[photos] - (np.cumsum(counts) - counts), counts)
            np.add.at(sums, faces, _unit(gallery.block(order[first + np.arange(len(faces))])))
        return sums


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    """Slices of the rows, such that memory does not grow with rows x classes."""
    size = max(1, min(BLOCK_ROWS, BLOCK_ELEMENTS // classes))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
