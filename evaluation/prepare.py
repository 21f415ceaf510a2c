"""Makes aligned faces and a pair list from the archives in which the sets are distributed."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from evaluation.embeddings import DAMAGE
from evaluation.names import match_names, stem_of
from evaluation.pairs import Pairs, read_bin, read_pairs, write_pairs
from faces.align import load_crops, write_crop
from faces.listing import IMAGE_SUFFIXES, list_images
from faces.reader import MAX_BYTES
from labels.label_table import write_skipped


def prepare_set(source: Path, pair_list: Path | None, output: Path, align: str, workers: int) -> tuple[Pairs, int]:
    """Write `output/images/...` and `output/pairs.tsv`; give the pairs of the source and the number of images skipped.

    source: a `.zip`, a tar archive, a folder, or InsightFace's `.bin`, which is its own pair list. Images that are
    aligned already are copied as they are; `align` is auto, yes or no. Images that cannot be read, or show no face, go
    to `pairs.tsv.skipped.tsv`, and their pairs are left out. Raises ValueError and its kind for what does not fit.
    """
    if pair_list is None and source.suffix.lower() != ".bin":
        raise ValueError(f"{source} needs its pair list: --pairs FILE (only .bin files hold their own)")
    pairs = read_pairs(pair_list or source)
    names = [_inside(name) for name in pairs.names]
    unpacked = output / "originals.partial"
    try:
        originals = _originals(source, pairs.names, unpacked)
        status, files = _write_crops(originals, names, output, align, workers)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    table = output / "pairs.tsv"
    write_skipped(table, [(name, s) for name, s in zip(pairs.names, status, strict=True) if s != "ok"])
    ok = np.array(status) == "ok"
    kept = ok[pairs.first] & ok[pairs.second]
    rows = zip(pairs.first[kept].tolist(), pairs.second[kept].tolist(), pairs.mated[kept].tolist(), strict=True)
    write_pairs(table, ((files[a], files[b], int(same)) for a, b, same in rows))
    return pairs, int((~ok).sum())


def _inside(name: str) -> str:
    """The name without its suffix, as a path below the output folder. Raises ValueError when it would lead outside."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"the pair list names {name!r}; a path inside the set was expected")
    return path.with_name(stem_of(name)).as_posix()


def _originals(source: Path, names: Sequence[str], folder: Path) -> list[Path]:
    """The file of each name: in the source folder itself, or unpacked into `folder`."""
    if source.is_dir():
        listed = list_images(source)
        return [listed[i] for i in match_names(names, [path.as_posix() for path in listed], str(source))]
    folder.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() == ".bin":
        images = read_bin(source)[0]
        return [_write(folder / f"{i}.jpg", image) for i, image in enumerate(images)]
    with _reading(source):
        members = [name for name, _ in _members(source) if name.lower().endswith(IMAGE_SUFFIXES)]
    found = match_names(names, members, str(source))
    wanted = {members[index]: folder / f"{i}{Path(members[index]).suffix}" for i, index in enumerate(found)}
    with _reading(source):
        for name, file in _members(source):
            if name in wanted:  # of a file that is too large the reader says so
                wanted[name].write_bytes(file.read(MAX_BYTES + 1))
    return [wanted[members[index]] for index in found]


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn everything that zipfile and tarfile raise for a damaged archive into a ValueError."""
    try:
        yield
    except (*DAMAGE, OSError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of the archive
            raise
        raise ValueError(f"{archive} is a damaged archive, or none: {error}; get it again") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file of a zip or tar archive, in the order in which they are stored."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    with opened.open(info) as file:
                        yield info.filename, file
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            for member in opened_tar:
                content = opened_tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content
    else:
        raise ValueError(f"{archive} is no folder, no zip, no tar archive and no .bin")


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _write_crops(
    originals: Sequence[Path], names: Sequence[str], output: Path, align: str, workers: int
) -> tuple[list[str], Mapping[int, str]]:
    """The status of each image, and for those that are ok the path of its crop relative to `output`."""
    status: list[str] = []
    files: dict[int, str] = {}
    for index, crop in enumerate(load_crops(originals, align, workers)):
        status.append(crop.status)
        if crop.status == "ok":
            suffix = originals[index].suffix if crop.value is None else ".jpg"
            files[index] = f"images/{names[index]}{suffix}"
            write_crop(output / files[index], crop.value, originals[index])
    return status, files
