"""Finding the face in a picture and bringing it to the template of ArcFace (Deng et al., CVPR 2019).

    python -m faces.align PHOTOGRAPHS --output CROPS

makes a folder of aligned 112x112 crops, with the same sub-folders, of a folder of photographs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from command_line import exit_code, natural
from model.files import printable, replacing

from .dlib_models import face_detector, landmarks_in
from .listing import list_images
from .reader import ImageError
from .workers import Loaded, load_batches

SIZE = 112
# Where eyes, nose tip and mouth corners (left to right in the picture) lie in a 112x112 crop: x, y in pixels.
ARCFACE_POINTS = np.array([
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
])
# The picture is searched at these lengths of its longest side, until a face is found. dlib finds faces from 80 pixels,
# so each step finds faces of half the size, at four times the cost. A face is larger than all that need a later step.
DETECTION_SIDES = (320, 640, 1280, 2560)
LARGEST_ENLARGEMENT = 4.0
ALIGN = ("auto", "yes", "no")   # which images `aligned` aligns
SURE = 0.5   # detections with this score of dlib or more are almost never wrong; others count only without such a one


def align_face(rgb: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The largest face of an RGB uint8 image (H, W, 3), rotated and scaled to the ArcFace template: uint8
    (size, size, 3), black outside the picture. Raises ImageError with the status no_face when dlib finds none."""
    return warp(rgb, five_points(rgb), ARCFACE_POINTS * (size / SIZE), size)


def is_aligned(rgb: np.ndarray) -> bool:
    """Whether the image (H, W, 3) is taken as an aligned crop: whether it is 112x112."""
    return rgb.shape[:2] == (SIZE, SIZE)


def aligned(rgb: np.ndarray, align: str) -> np.ndarray:
    """The face in an RGB uint8 image (H, W, 3), brought to the template: uint8 (112, 112, 3), or the image itself.

    align: "no" takes every image as it is, "yes" aligns every one, "auto" those that are not 112x112. Raises ImageError
    with the status no_face when dlib finds none.
    """
    if align == "no" or (align == "auto" and is_aligned(rgb)):
        return rgb
    return align_face(rgb)


def five_points(rgb: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) in pixels of the largest face. Raises ImageError (no_face)."""
    points = largest_face(rgb)
    eyes = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    return np.array([*eyes, points[30], points[48], points[54]])


def largest_face(rgb: np.ndarray) -> np.ndarray:
    """The 68 landmarks (68, 2), x and y in pixels, of the largest face. Raises ImageError (no_face)."""
    longest = max(rgb.shape[:2])
    for side in DETECTION_SIDES:
        scale = side / longest
        if scale > LARGEST_ENLARGEMENT and side > DETECTION_SIDES[0]:
            break
        picture = _resize(rgb, scale)
        boxes, scores, _ = face_detector().run(picture, 0)
        if boxes:
            sure = [box for box, score in zip(boxes, scores, strict=True) if score >= SURE] or boxes
            return _rescale(landmarks_in(picture, max(sure, key=lambda box: box.area())), 1 / scale)
    raise ImageError("no_face", "no face was found in the picture; an aligned crop of 112x112 pixels is taken as it is")


def similarity_transform(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The similarity transform, a matrix (2, 3), that maps points (N, 2) to a template (N, 2) with least squares.

    Umeyama (1991). With a point as the complex number x + iy it is z = a w + b: a rotates and scales, b translates.
    """
    w, z = points @ (1, 1j), template @ (1, 1j)
    spread = w - w.mean()
    assert np.any(spread), "a similarity needs at least two different points"
    a = np.vdot(spread, z) / np.vdot(spread, spread)
    b = z.mean() - a * w.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(rgb: np.ndarray, points: np.ndarray, template: np.ndarray, size: int) -> np.ndarray:
    """Map points (N, 2) of an image to the template in a crop (size, size, 3): bilinear, black outside the image.

    A face of more than twice the crop's scale is first reduced by averaging areas, to avoid aliasing.
    """
    matrix = similarity_transform(points, template)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        rgb, points = _resize(rgb, scale), _rescale(points, scale)
        matrix = similarity_transform(points, template)
    return cv2.warpAffine(rgb, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def _resize(rgb: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return rgb
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _rescale(points: np.ndarray, scale: float) -> np.ndarray:
    return (points + 0.5) * scale - 0.5   # pixel centres have whole coordinates, the picture starts at -0.5


def align_folder(folder: Path, output: Path, align: str, workers: int) -> dict[Path, str]:
    """Write the aligned crops of all images below a folder to `output`, in the same sub-folders. Returns the status of
    the images that could not be read or show no face.

    An image that is taken as it is (`aligned`) is copied; other crops are JPEG files of quality 95. A crop that is
    there already is written anew. Raises ValueError when `output` lies in the folder, or there are no images.
    """
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the crops in {output} would be images of {folder}; choose an --output outside")
    images = list_images(folder)
    if not images:
        raise ValueError(f"there are no images below {folder}")
    stems = Counter(path.with_suffix("") for path in images)
    crops = tqdm(load_crops(images, align, workers), total=len(images), unit=" faces", disable=None)
    bad: dict[Path, str] = {}
    for path, crop in zip(images, crops, strict=True):
        if crop.status != "ok":
            bad[path] = crop.status
            continue
        target = output / path.relative_to(folder)
        if crop.value is not None:  # a.png and a.jpg become a.png.jpg and a.jpg.jpg
            alone = stems[path.with_suffix("")] == 1
            target = target.with_suffix(".jpg") if alone else Path(f"{target}.jpg")
        write_crop(target, crop.value, path)
    return bad


def load_crops(images: Sequence[Path], align: str, workers: int) -> Iterator[Loaded[np.ndarray | None]]:
    """`aligned` of each image file, in their order; None for a file that is to be taken as it is."""
    return chain.from_iterable(load_batches(map(str, images), partial(_crop_or_nothing, align=align), 32, workers))


def write_crop(target: Path, crop: np.ndarray | None, original: Path) -> None:
    """Write a crop of `load_crops` as JPEG of quality 95, or copy the original file, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        if crop is None:
            shutil.copyfile(original, temporary)
        else:
            Image.fromarray(crop).save(temporary, "JPEG", quality=95, subsampling=0)


def _crop_or_nothing(rgb: np.ndarray, align: str) -> np.ndarray | None:
    crop = aligned(rgb, align)
    return None if crop is rgb else crop


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`; 1 also when an image has no crop."""
    parser = argparse.ArgumentParser("python -m faces.align", description="Aligned 112x112 crops of photographs.")
    parser.add_argument("folder", type=Path, metavar="PHOTOGRAPHS", help="a folder; its sub-folders are kept")
    parser.add_argument("--output", type=Path, required=True, metavar="CROPS", help="the folder for the crops")
    align = "auto: all but those of 112x112 (default); yes: all; no: copy them as they are"
    parser.add_argument("--align", choices=("auto", "yes", "no"), default="auto", help=align)
    workers = "processes (default: one a CPU)"
    parser.add_argument("--workers", type=natural, default=os.cpu_count() or 1, metavar="N", help=workers)
    args = parser.parse_args(arguments)

    def run() -> int:
        bad = align_folder(args.folder, args.output, args.align, args.workers)
        for path, status in bad.items():
            print(printable(f"{path}: {status}"), file=sys.stderr)
        return int(bool(bad))

    return exit_code(run, stopped="stopped; the crops so far are complete")


if __name__ == "__main__":
    sys.exit(main())
