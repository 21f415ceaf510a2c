"""Bringing the faces of pictures to the template of ArcFace (Deng et al., CVPR 2019).

    python -m faces.align PHOTOGRAPHS --output CROPS

makes a folder of aligned 112x112 crops, with the same sub-folders, of a folder of photographs, and the table
CROPS.faces.csv: for each picture its status, and for each face its crop, box, points and score.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from command_line import exit_code, natural, positive
from model.cores import available_cores
from model.files import free_name, open_text, printable, replacing, write_csv_rows

from .detect import CHOICES, MIN_FACE_SIZE, ROTATE, Face, Finder, shows_aligned_face
from .listing import list_images
from .reader import ImageError
from .template import ARCFACE_POINTS, SIZE, similarity_transform, warp
from .workers import Loaded, load_batches

__all__ = ["ARCFACE_POINTS", "SIZE", "similarity_transform", "warp"]  # of .template; the rest is defined here
ALIGN = ("auto", "yes", "no")   # which images are aligned
FLAT = 2.0  # grey levels: a crop whose pixels vary less shows nothing
TABLE = ("path", "status", "face", "crop", "box", "points", "detection", "aligned_by", "faces")


@dataclass(frozen=True)
class Alignment:
    """Which images are aligned, and how faces are found in them.

    align: "no" takes every image as it is, "yes" aligns every one, "auto" those that are not 112x112. With `check` an
    image that is taken as an aligned crop is looked at: whether it shows a face where the template has one.
    """

    align: str = "auto"
    finder: Finder = field(default_factory=Finder)
    check: bool = False

    def __post_init__(self) -> None:
        if self.align not in ALIGN:
            raise ValueError(f"align {self.align!r} is none of {', '.join(ALIGN)}")


@dataclass(frozen=True)
class Placed:
    """Where in its image a face lies, and how it came to the template. Coordinates are pixels, as in `Face`."""

    face: int | None = None
    """0 for the first face of the image, 1 for the next."""
    box: tuple[float, ...] | None = None
    """Left, top, right, bottom."""
    points: tuple[float, ...] | None = None
    """x and y of the eyes, the nose tip and the mouth corners: ten numbers."""
    detection: float | None = None
    """The detector's confidence in [0, 1]."""
    aligned_by: str | None = None
    """The detector's name; `points`, which were given; `crop`, an aligned crop taken as it is; `doubtful`, the same of
    a crop in which no face lies where the template has one; `none`, an image that was not to be aligned."""
    faces: int | None = None
    """How many faces were found. When only the largest is wanted, the search may end before it sees smaller ones."""


@dataclass(frozen=True)
class Crop:
    """A face as methods take it: RGB uint8, (112, 112, 3) unless the image was not to be aligned."""

    pixels: np.ndarray
    placed: Placed


def crops_of(rgb: np.ndarray, alignment: Alignment, points: np.ndarray | None = None) -> list[Crop]:
    """The wanted faces of an RGB uint8 image (H, W, 3), brought to the template.

    `points` (5, 2) or (K, 5, 2), x and y in pixels, are those of faces that are known already: nothing is searched.
    Raises ImageError with the status no_face when no face is found, or when an image taken as a crop is looked at and
    has one colour; ValueError for points of another shape, or all in one place.
    """
    if points is not None:
        given = np.asarray(points, np.float64)
        if given.shape[-2:] != (5, 2) or given.ndim not in (2, 3) or not np.isfinite(given).all():
            raise ValueError(f"points {given.shape}: (5, 2) or (K, 5, 2) finite numbers were expected")
        if not np.ptp(given, axis=-2).any(axis=-1).all():
            raise ValueError("all points of a face lie in one place; eyes, nose tip and mouth corners were expected")
        faces = [Face(box_around(five), 1.0, five) for five in given.reshape(-1, 5, 2)]
        return _warped(rgb, faces, "points", len(faces))
    if alignment.align == "no":
        return [Crop(rgb, Placed(aligned_by="none"))]
    if alignment.align == "auto" and is_aligned(rgb):
        if not alignment.check:
            return [Crop(rgb, Placed(aligned_by="crop"))]
        if cv2.meanStdDev(rgb)[1].max() < FLAT:
            raise ImageError("no_face", "the picture of 112x112 pixels has one colour; an aligned face was expected")
        return [Crop(rgb, Placed(aligned_by="crop" if shows_aligned_face(rgb) else "doubtful"))]
    faces, count = alignment.finder.find(rgb)
    if not faces:
        raise ImageError("no_face", "no face was found in the picture")
    return _warped(rgb, faces, alignment.finder.name, count)


def _warped(rgb: np.ndarray, faces: Sequence[Face], aligned_by: str, count: int) -> list[Crop]:
    crops = []
    for i, face in enumerate(faces):
        points = tuple(face.points.ravel().tolist())
        detection = None if aligned_by == "points" else face.score
        placed = Placed(i, face.box, points, detection, aligned_by, count)
        crops.append(Crop(warp(rgb, face.points, ARCFACE_POINTS, SIZE), placed))
    return crops


def box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    """A box for a face that is known by its five points (5, 2): twice the box around them, about its middle."""
    low, high = points.min(axis=0), points.max(axis=0)
    left, top = ((low + high) / 2 - (high - low)).tolist()
    right, bottom = ((low + high) / 2 + (high - low)).tolist()
    return left, top, right, bottom


def align_face(rgb: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The largest face of an RGB uint8 image (H, W, 3), rotated and scaled to the ArcFace template: uint8
    (size, size, 3), black outside the picture. Raises ImageError with the status no_face when none is found."""
    return warp(rgb, five_points(rgb), ARCFACE_POINTS * (size / SIZE), size)


def five_points(rgb: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) in pixels of the largest face. Raises ImageError (no_face)."""
    faces, _ = Finder().find(rgb)
    if not faces:
        raise ImageError("no_face", "no face was found in the picture; an aligned crop of 112x112 is taken as it is")
    return faces[0].points


def is_aligned(rgb: np.ndarray) -> bool:
    """Whether the image (H, W, 3) is taken as an aligned crop: whether it is 112x112."""
    return rgb.shape[:2] == (SIZE, SIZE)


def aligned(rgb: np.ndarray, align: str) -> np.ndarray:
    """The face in an RGB uint8 image (H, W, 3), brought to the template: uint8 (112, 112, 3), or the image itself.

    align: "no" takes every image as it is, "yes" aligns every one, "auto" those that are not 112x112. Raises ImageError
    with the status no_face when none is found.
    """
    if align == "no" or (align == "auto" and is_aligned(rgb)):
        return rgb
    return align_face(rgb)


def align_folder(
    folder: Path, output: Path, alignment: Alignment, workers: int, suffix: str = ".jpg"
) -> dict[Path, str]:
    """Write the aligned crops of all images below a folder to `output`, in the same sub-folders, and the table
    OUTPUT.faces.csv. Returns the status of the images that could not be read or show no face.

    An image that is taken as it is (`crops_of`) is copied; other crops are JPEG files of quality 95, or with the suffix
    .png files without loss. The second face of b.png is b_face1.jpg, or b_face1~2.jpg where b_face1.jpg is the crop of
    another image. A crop that is there already is written anew. Raises ValueError when `output` lies in the
    folder, or there are no images.
    """
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the crops in {output} would be images of {folder}; choose an --output outside")
    images = list_images(folder)
    if not images:
        raise ValueError(f"there are no images below {folder}")
    targets = _targets([path.relative_to(folder) for path in images], suffix)
    taken = {*targets, *targets.values()}
    prepare = partial(_crops_without_copies, alignment=alignment)
    loaded = chain.from_iterable(load_batches(map(str, images), prepare, 32, workers))
    bad: dict[Path, str] = {}
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(f"{output}.faces.csv")) as temporary, open_text(temporary, "w") as file:
        write_csv_rows(file, [TABLE])
        for path, crops in zip(images, tqdm(loaded, total=len(images), unit=" images", disable=None), strict=True):
            name = path.relative_to(folder)
            if crops.value is None:
                bad[path] = crops.status
                write_csv_rows(file, [[str(name), crops.status, *[None] * 7]])
                continue
            for pixels, placed in crops.value:
                target = name if pixels is None else targets[name]
                if placed.face:
                    face = target.with_name(f"{target.stem}_face{placed.face}{suffix}")
                    taken.add(target := free_name(face, taken.__contains__))
                write_crop(output / target, pixels, path)
                write_csv_rows(file, [_table_row(name, target, placed)])
    return bad


def _targets(names: Sequence[Path], suffix: str) -> dict[Path, Path]:
    """The first crop of each image: a.png and a.jpg become a.png.jpg and a.jpg.jpg. None has the name of another image,
    which may be copied as it is."""
    stems = Counter(name.with_suffix("") for name in names)
    taken, targets = set(names), dict[Path, Path]()
    for name in names:
        base = name.with_suffix("") if stems[name.with_suffix("")] == 1 else name
        target = Path(f"{base}{suffix}")
        targets[name] = target if target == name else free_name(target, taken.__contains__)
        taken.add(targets[name])
    return targets


def _table_row(name: Path, target: Path, placed: Placed) -> list[str | float | int | None]:
    box, points = (None if v is None else " ".join(f"{x:.2f}" for x in v) for v in (placed.box, placed.points))
    detection = None if placed.detection is None else round(placed.detection, 4)
    return [str(name), "ok", placed.face, str(target), box, points, detection, placed.aligned_by, placed.faces]


def _crops_without_copies(rgb: np.ndarray, alignment: Alignment) -> list[tuple[np.ndarray | None, Placed]]:
    """Pixels and place of each face; no pixels of an image that is to be copied."""
    return [(None if crop.pixels is rgb else crop.pixels, crop.placed) for crop in crops_of(rgb, alignment)]


def load_crops(images: Sequence[Path], align: str, workers: int) -> Iterator[Loaded[np.ndarray | None]]:
    """`aligned` of each image file, in their order; None for a file that is to be taken as it is."""
    return chain.from_iterable(load_batches(map(str, images), partial(_crop_or_nothing, align=align), 32, workers))


def write_crop(target: Path, crop: np.ndarray | None, original: Path) -> None:
    """Write a crop as PNG, or as JPEG of quality 95, or copy the original file, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        if crop is None:
            shutil.copyfile(original, temporary)
        else:
            kind = "PNG" if target.suffix == ".png" else "JPEG"
            Image.fromarray(crop).save(temporary, kind, quality=95, subsampling=0)  # PNG has no such options


def _crop_or_nothing(rgb: np.ndarray, align: str) -> np.ndarray | None:
    crop = aligned(rgb, align)
    return None if crop is rgb else crop


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`; 1 also when an image has no crop."""
    parser = argparse.ArgumentParser("python -m faces.align", description="Aligned 112x112 crops of photographs.")
    parser.add_argument("folder", type=Path, metavar="PHOTOGRAPHS", help="a folder; its sub-folders are kept")
    parser.add_argument("--output", type=Path, required=True, metavar="CROPS", help="the folder for the crops")
    align = "auto: all but those of 112x112 (default); yes: all; no: copy them as they are"
    parser.add_argument("--align", choices=ALIGN, default="auto", help=align)
    lossless = "png: crops without loss (default: jpg)"
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help=lossless)
    add_finder_options(parser)
    workers = "processes (default: one a core)"
    parser.add_argument("--workers", type=natural, default=available_cores(), metavar="N", help=workers)
    args = parser.parse_args(arguments)

    def run() -> int:
        alignment = Alignment(args.align, finder_of(args), check=True)
        bad = align_folder(args.folder, args.output, alignment, args.workers, f".{args.format}")
        for path, status in bad.items():
            print(printable(f"{path}: {status}"), file=sys.stderr)
        return int(bool(bad))

    return exit_code(run, stopped="stopped; the crops so far are complete")


def add_finder_options(parser: argparse.ArgumentParser) -> None:
    """The options of `Finder`."""
    add = parser.add_argument
    add("--faces", choices=CHOICES, default="largest", help="which faces of a picture (default: the largest one)")
    smallest = f"leave out faces with fewer pixels (default: {MIN_FACE_SIZE})"
    add("--min-face-size", type=positive, default=MIN_FACE_SIZE, metavar="N", help=smallest)
    add("--rotate", choices=ROTATE, default="no", help="auto: also look for faces on their side or upside down")
    add("--detector", metavar="FILE.onnx", help="a detector of OpenCV's YuNet format (default: the one in weights/)")


def finder_of(args: argparse.Namespace) -> Finder:
    """The `Finder` of the options. Raises ValueError."""
    return Finder(args.faces, args.min_face_size, args.rotate, args.detector)


if __name__ == "__main__":
    sys.exit(main())
