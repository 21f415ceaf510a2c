"""Selecting the rows of a score table: by score, band, percentile and factors, by a share, and the best of each group.

The rows are read from the journal of the run, once for each question that needs all of them (a share, the best of
each group) and once more to mark them. Of all rows only the qualities are held in memory, 8 bytes each, and only for a
share; of each group the best rows are held by their numbers.
"""

from __future__ import annotations

import fnmatch
import glob
import heapq
import io
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from faces.containers import read_member, split
from faces.reader import FORMATS, MAX_BYTES, ImageError
from model.bands import BANDS
from model.files import free_name
from model.percentiles import discard_threshold
from model.prompts import AXES, FACTORS

from .region_map import RegionMap
from .tables import Row


def folder_of(row: Row) -> str:
    """The folder of a row's file, the same however the path is written."""
    return os.path.dirname(os.path.abspath(row["path"]))


GROUPS: dict[str, Callable[[Row], str]] = {  # --best-per: what a row belongs to
    "folder": folder_of,
    "identity": lambda row: os.path.basename(folder_of(row)),
    "track": lambda row: f"{row['track']} {row['path']}",   # of a video
}


@dataclass(frozen=True)
class Selection:
    """What a row must have. A row without a quality is never selected."""

    min_score: float | None = None
    min_band: str | None = None
    min_percentile: float | None = None
    """From 0 to 100, of the set that is stored in the weights."""
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """factor -> the levels that may be its most probable one."""
    discard: float | None = None
    """The share, in [0, 1), of all rows with a quality that are the worst."""
    best_per: tuple[str, int] | None = None
    """A key of `GROUPS` and how many of each group: the best of those that pass everything else."""

    def __bool__(self) -> bool:
        return self != Selection()

    @property
    def needs_all(self) -> bool:
        """Whether a row can be selected only when all rows are known."""
        return self.discard is not None or self.best_per is not None

    def passes(self, row: Row) -> bool:
        """Whether a row passes what can be told from it alone."""
        return (
            row["quality"] is not None
            and (self.min_score is None or row["quality"] >= self.min_score)
            and (self.min_band is None or BANDS.index(row["band"]) >= BANDS.index(self.min_band))
            and (self.min_percentile is None or row["percentile"] >= self.min_percentile)
            and all(row[factor] in levels for factor, levels in self.keep.items())
        )


def marker(selection: Selection, read: Callable[[], Iterator[Row]]) -> Callable[[Iterable[Row]], Iterator[Row]]:
    """A function that adds `selected` to each row of a table, in its order. `read` gives all rows, each time anew."""
    lowest = -math.inf
    if selection.discard is not None:
        known = (row["quality"] for row in read() if row["quality"] is not None)
        lowest = discard_threshold(np.fromiter(known, np.float64), selection.discard)

    def passes(row: Row) -> bool:
        return selection.passes(row) and row["quality"] >= lowest

    best = None if selection.best_per is None else best_rows(read(), passes, *selection.best_per)

    def mark(rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows):
            yield row | {"selected": passes(row) if best is None else number in best}

    return mark


def best_rows(rows: Iterable[Row], passes: Callable[[Row], bool], group: str, count: int) -> set[int]:
    """The numbers of the `count` best rows of each group; of equal ones the earlier."""
    heaps: dict[str, list[tuple[float, int]]] = {}
    for number, row in enumerate(rows):
        if passes(row):
            heap = heaps.setdefault(GROUPS[group](row), [])
            add = heapq.heappush if len(heap) < count else heapq.heappushpop
            add(heap, (row["quality"], -number))
    return {-number for heap in heaps.values() for _, number in heap}


def selected_paths(rows: Iterable[Row]) -> Iterator[str]:
    """The path of each selected row; of neighbouring rows with one path, its faces, only the first."""
    for path, _ in itertools.groupby(row["path"] for row in rows if row["selected"] and row.get("frame") is None):
        yield path


def selected_faces(rows: Iterable[Row]) -> Iterator[tuple[str, int]]:
    """Path and face of each selected row of a picture; of neighbouring rows of one face only the first."""
    wanted = (row for row in rows if row["selected"] and row.get("frame") is None)
    for face, _ in itertools.groupby((row["path"], row["face"] or 0) for row in wanted):
        yield face


def check_new(folder: Path, files: Iterable[Path] = ()) -> None:
    """Raises ValueError when a folder that copies are to fill holds something, is none, or cannot be exchanged for the
    filled one; also when one of the other `files` of the run would lie in it."""
    place = folder.resolve()
    if place == Path.cwd():
        raise ValueError(f"{folder} is the current folder: name a new folder in it")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder, so that nothing is mixed with what is there")
    if os.path.ismount(place):
        raise ValueError(f"{folder} is a mount point: name a new folder in it")
    for file in files:
        if file.resolve().is_relative_to(place):
            raise ValueError(f"{file} lies in {folder}, which is to hold the copies alone: choose another place")


def check_writable(folder: Path) -> None:
    """Make a folder where there is none, and try it. Raises ValueError when it is no folder, OSError when nothing can
    be written into it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name a new one, or one that is there")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder):
        pass


def check_outside(folder: Path, inputs: Iterable[str]) -> None:
    """Raises ValueError when a folder that a run is to fill lies in a folder, or fits a pattern, that it reads."""
    place = folder.resolve()
    for path in inputs:
        below = os.path.isdir(path) and place.is_relative_to(Path(path).resolve())
        if below or (not os.path.lexists(path) and glob.has_magic(path) and reaches(path, place)):
            raise ValueError(f"the files in {folder} would be images of {path}: choose a folder outside")


def reaches(pattern: str, place: Path) -> bool:
    """Whether a pattern can give a folder, given as an absolute path, one above it, or files in it."""
    parts = Path(os.path.realpath(pattern)).parts
    fixed = itertools.takewhile(lambda part: part != "**", parts)   # `**` is any number of folders
    return all(fnmatch.fnmatchcase(name, part) for name, part in zip(place.parts, fixed, strict=False))


def copy_files(read: Callable[[], Iterator[str]], folder: Path, max_bytes: int = MAX_BYTES) -> int:
    """Copy the files at these paths into a folder, which exists; how many.

    The sub-folders that the paths have beyond their common one are kept. A name without a suffix, a row of a Parquet
    file, gets that of the picture's format. `read` gives the paths, each time anew. Raises RuntimeError when a file is
    not there any more.
    """
    count = 0
    for path, target in places(read, folder):
        try:
            if place := split(path):   # a picture in an archive
                content = read_member(*place, max_bytes)
                named = target if target.suffix else free_name(Path(f"{target}{suffix_of(content)}"))
                named.write_bytes(content)
            else:
                shutil.copyfile(path, target)
        except (FileNotFoundError, ImageError) as error:
            raise RuntimeError(f"{path} was scored, and is not there any more: nothing was copied") from error
        count += 1
    return count


def write_maps(
    read: Callable[[], Iterator[tuple[str, int]]],
    folder: Path,
    region_maps: Callable[[str, list[int]], Iterator[RegionMap]],
) -> int:
    """Write a map of each face below a folder, each as soon as it is made; how many.

    `read` gives path and face, each time anew. Maps are named as `copy_files` does; that of the second face of a.png is
    named a_face1.png. A map of an earlier run under the same name is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: set[Path] = set()
    targets = places(lambda: (face_name(*face) for face in read()), folder, written.__contains__)
    for path, faces in itertools.groupby(read(), lambda face: face[0]):
        for region_map in region_maps(path, [face for _, face in faces]):
            _, target = next(targets)
            region_map.write(target)
            written.add(target)
    return len(written)


def face_name(path: str, face: int) -> str:
    """A name for a face of a picture: that of the picture, for all but the first face with `_faceN`."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}_face{face}{suffix}" if face else path


def places(
    read: Callable[[], Iterator[str]], folder: Path, is_taken: Callable[[Path], bool] = Path.exists
) -> Iterator[tuple[str, Path]]:
    """Each path with a free place for it below `folder`, whose parent exists.

    No path leads out of the folder: roots, `.` and `..` are left out. A name that is taken gets `~2`, `~3`, …
    """
    common = shared_start(parts_of(path)[:-1] for path in read())
    for path in read():
        parts = parts_of(path)[common:]
        target = folder.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):  # a file of another root has the name of a folder of this one
            target = folder / "~".join(parts)
        yield path, free_name(target, is_taken)


def suffix_of(content: bytes) -> str:
    """The suffix of an image file with this content."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind = str(image.format)
    return {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind, f".{kind.lower()}")   # an MPO begins with a JPEG


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of a path without its root, `.` and `..`."""
    pure = PurePath(path)
    return tuple(part for part in pure.parts if part not in (pure.anchor, ".", "..")) or ("image",)


def shared_start(sequences: Iterable[tuple[str, ...]]) -> int:
    """How many first parts all have in common."""
    start: tuple[str, ...] | None = None
    for parts in sequences:
        pairs = zip(parts if start is None else start, parts, strict=False)
        start = tuple(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(start or ())


def read_keep(text: str) -> tuple[str, tuple[str, ...]]:
    """`pose=frontal,slight angle` as a factor and its levels. Raises ValueError for names that do not exist."""
    factor, _, names = text.partition("=")
    if factor not in FACTORS:
        raise ValueError(f"{text!r}: FACTOR=LEVEL,… was expected, with a factor of {', '.join(FACTORS)}")
    levels = tuple(name.strip() for name in names.split(","))
    if unknown := [level for level in levels if level not in AXES[factor]]:
        raise ValueError(f"{factor} has no level {unknown[0]!r}: its levels are {', '.join(AXES[factor])}")
    return factor, levels
