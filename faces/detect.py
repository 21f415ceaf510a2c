"""Finding faces in photographs: `detect(rgb)` gives their boxes, scores and five points.

CenterFace (model/center_face.py) looks at the picture at several sizes. A small network (model/face_points.py) then
looks at each face it found, brought to the ArcFace template by the points so far, and says where the points really are
and whether this is a face. Two rounds of that are enough: later ones change little. The second one also looks at the
mirror image.

A file of OpenCV's YuNet format can take CenterFace's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from model.center_face import LARGEST_STRIDE, CenterFace
from model.crop_check import CropCheck
from model.face_points import CENTRE, SPAN, FacePoints, mirrored
from model.face_points import SIZE as WINDOW
from model.fast import fuse_convolutions
from model.loading import load

from .template import ARCFACE_POINTS, mapped_back, off_template, rescaled, resized, similarity_transform, warped

DETECTOR = "center-face"  # the name in `model/weights.py`, and in the column `aligned_by`
POINTS = "face-points"
CHECK = "crop-check"
CHOICES = ("largest", "central", "all")
ROTATE = ("no", "auto")
MIN_FACE_SIZE = 24  # pixels

FIRST_SIDE = 320  # pixels of the longer side of the picture that is searched first
LARGEST_ENLARGEMENT = 4.0
RELIABLE = 16.0  # pixels of a face in the searched picture; of smaller ones many are missed
MOST_SEARCHED = 8e6  # pixels of the largest searched version of a picture: a bound on the time that a huge one takes
TILE, OVERLAP = 640, 128  # pixels; larger pictures are searched in tiles, so that the memory has a bound
WINDOWS_AT_ONCE = 64
CANDIDATE = 0.3  # CenterFace's score from which on the second network is asked
SURE = 0.5  # from which on a larger version of the picture need not be searched for the largest face
UPRIGHT = 0.75  # from which on the other quarter turns are not tried
SAME_FACE = 0.4  # intersection over union
INSIDE = 0.7  # share of the smaller box that lies in the larger one
PLAIN = 6.0  # the small network's logit from which on a crop needs no second look
CERTAIN = 1.0  # the logit from which on a crop shows a face
UPSIDE_DOWN = -20.0  # the logit of a face on its head
MISPLACED = 9.0  # pixels by which the alignment of a crop's own points would move the template's


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a picture. Coordinates are pixels; the centre of the first pixel is (0, 0)."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom; it may reach beyond the picture."""
    score: float
    """The detector's confidence in [0, 1]."""
    points: np.ndarray
    """Eyes, nose tip and mouth corners, left to right in the upright face: x and y, float64 (5, 2)."""

    @property
    def size(self) -> float:
        """The longer side of the box."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@dataclass(frozen=True)
class Finder:
    """Which faces of a picture are wanted, and how they are looked for.

    `faces` is largest, central (the one nearest to the picture's centre) or all. Faces smaller than `min_face_size`
    pixels (the longer side of the box) do not count. With `rotate` auto a picture may also lie on its side or stand on
    its head. `detector` is a file of OpenCV's YuNet format (default: the networks in weights/).
    """

    faces: str = "largest"
    min_face_size: float = MIN_FACE_SIZE
    rotate: str = "no"
    detector: str | None = None

    def __post_init__(self) -> None:
        if self.faces not in CHOICES:
            raise ValueError(f"faces {self.faces!r} is none of {', '.join(CHOICES)}")
        if self.rotate not in ROTATE:
            raise ValueError(f"rotate {self.rotate!r} is none of {', '.join(ROTATE)}")
        if self.min_face_size < 1:
            raise ValueError(f"min_face_size {self.min_face_size} is too small: at least 1 pixel was expected")
        if self.detector is not None and not Path(self.detector).is_file():
            raise ValueError(f"there is no detector {self.detector}; an ONNX file of OpenCV's YuNet was expected")

    @property
    def name(self) -> str:
        """What finds the faces, for the column `aligned_by`."""
        return DETECTOR if self.detector is None else Path(self.detector).stem

    def find(self, rgb: np.ndarray) -> tuple[list[Face], int]:
        """The wanted faces of an RGB uint8 image (H, W, 3), largest first, and how many faces were found.

        For the largest face alone the search ends when it is sure; smaller faces are then not counted.
        """
        found = detect(rgb, self.min_face_size, self.rotate, self.faces == "largest", self.detector)
        if self.faces == "all":
            return found, len(found)
        sure = [face for face in found if face.score >= SURE] or found  # doubtful ones count only without such a one
        if self.faces == "central" and sure:
            middle = (np.array(rgb.shape[1::-1]) - 1) / 2
            return [min(sure, key=lambda face: float(np.linalg.norm(_centre(face.box) - middle)))], len(found)
        return sure[:1], len(found)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside. With another number of them points would differ in the sixth digit, here
    and there a pixel of a crop would be rounded the other way, and scores would differ by up to 0.0004."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def detect(
    rgb: np.ndarray,
    min_face_size: float = MIN_FACE_SIZE,
    rotate: str = "no",
    only_largest: bool = False,
    detector: str | None = None,
) -> list[Face]:
    """The faces of an RGB uint8 image (H, W, 3), largest first.

    `only_largest` ends the search at the first size of the picture at which a sure face was found, since later ones
    only add smaller faces. The other arguments are those of `Finder`.
    """
    search = _search_of(detector, min_face_size, only_largest)
    found = search(rgb)
    # YuNet is nearly as sure of faces on their side, so all turns are compared
    if rotate == "auto" and (detector is not None or _confidence(found) < UPRIGHT):
        found = max((_turned_search(search, rgb, turns, found) for turns in range(4)), key=_confidence)
    return sorted((face for face in found if face.size >= min_face_size), key=lambda face: -face.size)


def _search_of(detector: str | None, min_face_size: float, only_largest: bool) -> Callable[[np.ndarray], list[Face]]:
    if detector is not None:
        return lambda rgb: _search_with_yunet(rgb, detector)
    return lambda rgb: _search(rgb, min_face_size, only_largest)


def _turned_search(
    search: Callable[[np.ndarray], list[Face]], rgb: np.ndarray, turns: int, upright: list[Face]
) -> list[Face]:
    """The faces of a picture turned by quarters, in the coordinates of the picture itself."""
    if turns == 0:
        return upright
    found = search(np.ascontiguousarray(np.rot90(rgb, turns)))
    return [_turned_back(face, turns, rgb.shape[0], rgb.shape[1]) for face in found]


def _turned_back(face: Face, turns: int, height: int, width: int) -> Face:
    """A face of `np.rot90(picture, turns)` in the picture of this height and width."""
    corners = _turn_points(np.array(face.box).reshape(2, 2), turns, height, width)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Face((left, top, right, bottom), face.score, _turn_points(face.points, turns, height, width))


def _turn_points(points: np.ndarray, turns: int, height: int, width: int) -> np.ndarray:
    x, y = points.T
    if turns == 1:
        return np.stack([width - 1 - y, x], axis=1)
    if turns == 2:
        return np.stack([width - 1 - x, height - 1 - y], axis=1)
    return np.stack([y, height - 1 - x], axis=1)


def _confidence(found: Sequence[Face]) -> float:
    return max((face.score for face in found), default=0.0)


def _centre(box: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = box
    return np.array([left + right, top + bottom]) / 2


# ---- the search of the whole picture --------------------------------------------------------------------------------


@torch.inference_mode()
def _search(rgb: np.ndarray, min_face_size: float, only_largest: bool) -> list[Face]:
    found: list[Face] = []
    for scale in search_scales(rgb.shape[0], rgb.shape[1], min_face_size):
        new = _refined(rgb, _suppressed(list(_search_at(rgb, scale))))
        found = _suppressed([*found, *new])
        if only_largest and any(face.score >= SURE and face.size >= min_face_size for face in found):
            break
    return found


def search_scales(height: int, width: int, min_face_size: float) -> list[float]:
    """The scales at which a picture is searched: each twice the one before, from a small picture for large faces to one
    in which the smallest wanted face is large enough to be found.

    Above 18 megapixels the last one stays smaller: of 30 megapixels faces from 31 pixels on are reliably found, of 50
    from 40 on.
    """
    first = min(FIRST_SIDE / max(height, width), LARGEST_ENLARGEMENT)
    last = min(RELIABLE / min_face_size, LARGEST_ENLARGEMENT, math.sqrt(MOST_SEARCHED / (height * width)))
    scales = [first]
    while scales[-1] < last:
        scales.append(min(2 * scales[-1], max(last, 1.25 * scales[-1])))
    return scales


def _search_at(rgb: np.ndarray, scale: float) -> Iterator[Face]:
    """The candidates of a picture at one scale, in pixels of the picture."""
    picture = resized(rgb, scale)
    height, width = picture.shape[:2]
    rows, columns = _tile_starts(height), _tile_starts(width)
    side_y = TILE if len(rows) > 1 else height
    side_x = TILE if len(columns) > 1 else width
    for top, left in product(rows, columns):   # one by one: several at a time take more memory and no less time
        inner = _inner_edges(top, left, side_y, side_x, height, width)
        corner = np.array([left, top])
        for score, box, five in zip(*_cells(picture[top : top + side_y, left : left + side_x]), strict=True):
            if not _is_cut(box, inner):
                edges = ((box.reshape(2, 2) + corner) / scale - 0.5).ravel().tolist()
                yield Face(tuple(edges), float(score), rescaled(five + corner - 0.5, 1 / scale))


def _tile_starts(side: int) -> list[int]:
    """Where the tiles of a side begin; they overlap, and the last one ends with the picture."""
    if side <= TILE + OVERLAP:
        return [0]
    count = -(-(side - OVERLAP) // (TILE - OVERLAP))
    return np.linspace(0, side - TILE, count).round().astype(int).tolist()


def _inner_edges(top: int, left: int, side_y: int, side_x: int, height: int, width: int) -> np.ndarray:
    """Left, top, right and bottom edge of a tile, in its own pixels; infinite where the picture ends there too."""
    infinite = np.inf
    return np.array([
        -infinite if left == 0 else 2,
        -infinite if top == 0 else 2,
        infinite if left + side_x == width else side_x - 2,
        infinite if top + side_y == height else side_y - 2,
    ])


def _is_cut(box: np.ndarray, inner: np.ndarray) -> bool:
    """Whether a box reaches over an inner edge of its tile: the next tile, or a smaller picture, shows it whole."""
    return bool((box[:2] < inner[:2]).any() or (box[2:] > inner[2:]).any())


def _cells(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CenterFace's candidates in a tile (H, W, 3): scores (K,), boxes (K, 4) and points (K, 5, 2) in its pixels."""
    x = torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1)[None].float()
    padding = [side for size in x.shape[:1:-1] for side in (0, -size % LARGEST_STRIDE)]
    cells = _center_face()(torch.nn.functional.pad(x, padding))
    peaks = torch.nn.functional.max_pool2d(cells.score[:, None], 3, 1, 1)[:, 0]
    kept = (cells.score >= CANDIDATE) & (cells.score == peaks)
    return cells.score[kept].numpy(), cells.box[kept].double().numpy(), cells.points[kept].double().numpy()


def _suppressed(faces: Sequence[Face]) -> list[Face]:
    """The faces without those that show the same face as a more certain one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(_is_same(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


def _is_same(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return False
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    both = width * height
    return both > SAME_FACE * (area_a + area_b - both) or both > INSIDE * min(area_a, area_b)


# ---- the points of each face ----------------------------------------------------------------------------------------


def _refined(rgb: np.ndarray, faces: Sequence[Face]) -> list[Face]:
    """The faces with better points, without those that are none. The score becomes the product of the detector's and of
    the second network's probability, which is small for a face that is upside down."""
    points, logits = refine_points(rgb, [face.points for face in faces])
    return [
        Face(face.box, face.score / (1 + math.exp(-logit)), five)
        for face, five, logit in zip(faces, points, logits, strict=True)
        if is_face(face.score, logit)
    ]


def is_face(score: float, logit: float) -> bool:
    """Whether the detector's score and the logit of the second network make a face."""
    return (score >= 0.5 and logit > -4) or logit > 1


@one_thread()
@torch.inference_mode()
def refine_points(rgb: np.ndarray, points: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Better points (5, 2) for each face whose points are roughly known, and its logit (`_looked_at_closely`)."""
    network, better = _face_points(), list(points)
    logits = np.zeros(len(points))
    for start in range(0, len(points), WINDOWS_AT_ONCE):
        part = slice(start, start + WINDOWS_AT_ONCE)
        for last in (False, True):
            matrices = [similarity_transform(five, ARCFACE_POINTS) for five in better[part]]
            if last:
                found, logits[part] = _looked_at_closely(rgb, matrices, ARCFACE_POINTS.mean(axis=0))
            else:
                found = network(windows_of(rgb, matrices))[0].double().numpy()
            better[part] = [mapped_back(five, m) for five, m in zip(found, matrices, strict=True)]
    return better, logits


@one_thread()
@torch.inference_mode()
def shows_aligned_face(crop: np.ndarray) -> bool:
    """Whether a face lies in an RGB uint8 crop (112, 112, 3) where the template has it.

    A small network (model/crop_check.py) is sure of nearly all crops. The network of points looks at the others, which
    takes twenty times as long.
    """
    return is_plain(crop) or points_are_placed(crop)


def is_plain(crop: np.ndarray) -> bool:
    """Whether the small network is sure that a crop (112, 112, 3) shows an aligned face."""
    return bool(_crop_check()(torch.from_numpy(halved(crop))[None])[0] > PLAIN)


def points_are_placed(crop: np.ndarray) -> bool:
    """Whether the network of points finds a face in a crop (112, 112, 3), and its points on the template's."""
    points, logits = _looked_at_closely(crop, [np.eye(2, 3)], (np.array(crop.shape[1::-1]) - 1) / 2)
    return logits[0] > CERTAIN and off_template(points[0]) < MISPLACED


def _looked_at_closely(
    rgb: np.ndarray, matrices: Sequence[np.ndarray], middle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 5, 2) in an image's windows, the means of what is seen in each and in its mirror image; and the logits
    (N,), `UPSIDE_DOWN` of windows in which a face on its head is more likely.

    Many a face on its head looks like one to the network, but the right way up more so. So windows turned about
    `middle` (2,) of the template are looked at too.
    """
    turned = [np.column_stack([-matrix[:, :2], 2 * middle - matrix[:, 2]]) for matrix in matrices]
    windows = windows_of(rgb, [*matrices, *turned])
    count = len(matrices)
    points, logits = _face_points()(torch.cat([windows, windows[:count].flip(2)]))
    seen, _, in_mirror = points.double().numpy().reshape(3, count, 5, 2)
    upright, on_head, _ = logits.view(3, count)
    return (seen + mirrored(in_mirror)) / 2, torch.where(on_head > upright, UPSIDE_DOWN, upright).numpy()


def windows_of(rgb: np.ndarray, matrices: Sequence[np.ndarray]) -> torch.Tensor:
    """`window` for each matrix: (N, 192, 192, 3)."""
    return torch.from_numpy(np.stack([window(rgb, matrix) for matrix in matrices]))


def window(rgb: np.ndarray, matrix: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """What the network of points looks at: the part (192, 192, 3) of the template that a similarity (2, 3) fills from
    an image. `border` of OpenCV says what lies beyond the image: by default its last pixels are repeated."""
    zoom = WINDOW / SPAN
    matrix = zoom * matrix
    matrix[:, 2] += (WINDOW - 1) / 2 - zoom * np.array(CENTRE)
    return warped(rgb, matrix, WINDOW, border)


def halved(crop: np.ndarray) -> np.ndarray:
    """An RGB uint8 crop (112, 112, 3) in grey and at half its size, as the small network sees it: (56, 56)."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)


@cache
def _center_face() -> nn.Module:
    network: CenterFace = load(DETECTOR)
    return fuse_convolutions(network.requires_grad_(False).to(memory_format=torch.channels_last))


@cache
def _crop_check() -> nn.Module:
    network: CropCheck = load(CHECK)
    return fuse_convolutions(network.requires_grad_(False))


@cache
def _face_points() -> nn.Module:
    network: FacePoints = load(POINTS)
    return fuse_convolutions(network.requires_grad_(False).to(memory_format=torch.channels_last))


# ---- OpenCV's YuNet -------------------------------------------------------------------------------------------------


def _search_with_yunet(rgb: np.ndarray, path: str) -> list[Face]:
    """The faces that a network of OpenCV's YuNet format finds, with our own points: YuNet's are off by a tenth of the
    eye distance, more in turned pictures. A picture above 1280 pixels is reduced."""
    longest = max(rgb.shape[:2])
    scale = min(1.0, 1280 / longest)
    picture = resized(rgb, scale)
    network = _yunet(path)
    network.setInputSize((picture.shape[1], picture.shape[0]))
    try:
        _, rows = network.detect(np.ascontiguousarray(picture[..., ::-1]))
    except cv2.error as error:
        raise _no_yunet(path, error) from error
    found = []
    for row in np.empty((0, 15)) if rows is None else np.asarray(rows, np.float64):
        left, top, width, height = (row[:4] / scale).tolist()
        points = rescaled(row[4:14].reshape(5, 2), 1 / scale)
        found.append(Face((left, top, left + width, top + height), float(row[14]), points))
    return _refined(rgb, found)


@cache
def _yunet(path: str) -> cv2.FaceDetectorYN:
    try:
        return cv2.FaceDetectorYN.create(path, "", (FIRST_SIDE, FIRST_SIDE), score_threshold=0.6)
    except cv2.error as error:
        raise _no_yunet(path, error) from error


def _no_yunet(path: str, error: cv2.error) -> ValueError:
    reason = error.err.split("\n")[0].removeprefix("> ").removesuffix(", where")
    return ValueError(f"{path} is no detector of OpenCV's YuNet format: {reason}")
