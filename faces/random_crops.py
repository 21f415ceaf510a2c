"""Random crops of a picture, chosen by the picture's own content, and the landmarks that lie in each of them.

DSL-FIQA (Chen et al., CVPR 2024) scores a face photograph of 512x512 pixels by the mean over 20 random crops of
384x384. Here the seed is the picture itself, so that neither batch, nor order, nor the number of workers changes them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from model.dsl_fiqa import DslFiqaShape

CROPS = 20
WIDEST = 4 / 3  # a larger picture's shorter side, as a multiple of the crop's side: 512 / 384 in the published sets
LONGEST = 8  # a picture's longer side, as a multiple of its shorter side; of a longer one the middle is taken
FACE_MARGIN = 0.8  # of the square around a face, as a share of the face's box; of the published preparation
ABSENT = -10.0  # both coordinates of a landmark that is not seen, as shares of the crop's side: far from every token
MIRRORED = np.array(  # which of the 68 landmarks takes the place of which in a mirrored picture
    [
        *(*range(16, -1, -1), *range(26, 16, -1)),  # jaw, brows
        *(*range(27, 31), *range(35, 30, -1)),  # bridge of the nose, nostrils
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)),  # lips: outer, inner
    ]
)


def fit(image: np.ndarray, points: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture, RGB uint8 (H, W, 3), and its landmarks (P, 2), as the crops of side `size` are taken of them.

    A picture whose shorter side is from `size` to 4/3 of it stays as it is. A smaller one is enlarged until the shorter
    side is `size`. Of a larger one the square around the face is taken, or without a face all of it; what is still
    larger is shrunk until the shorter side is 4/3 of `size`.
    """
    largest = round(WIDEST * size)
    if min(image.shape[:2]) > largest and points is not None:
        image, points = face_square(image, points)
    image, points = _shortened(image, points)
    shorter = min(image.shape[:2])
    target = min(max(shorter, size), largest)
    return (image, points) if target == shorter else _resized(image, points, target / shorter)


def face_square(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square around the box of the landmarks, enlarged by FACE_MARGIN and moved into the picture, and the
    landmarks in it. It has at most the picture's shorter side."""
    height, width = image.shape[:2]
    low, high = points.min(axis=0), points.max(axis=0)
    side = int(np.clip(np.ceil((high - low).max() * (1 + FACE_MARGIN)), 1, min(height, width)))
    corner = np.rint((low + high - side) / 2).clip(0, (width - side, height - side)).astype(int)
    left, top = corner.tolist()
    return np.ascontiguousarray(image[top : top + side, left : left + side]), points - corner


def crops_for(
    shape: DslFiqaShape, image: np.ndarray, points: np.ndarray | None, count: int = CROPS
) -> tuple[np.ndarray, np.ndarray]:
    """The crops (K, S, S, 3) of a picture that `fit` gave, and the landmarks of each as the network reads them."""
    corners = random_corners(image, shape.image_size, count)
    landmarks = np.stack([landmarks_for(shape, points, corner) for corner in corners])
    return cut(image, corners, shape.image_size), landmarks


def landmarks_for(shape: DslFiqaShape, points: np.ndarray | None, corner: np.ndarray) -> np.ndarray:
    """The landmarks of a crop as a network of this shape reads them; empty for one that reads none."""
    if shape.landmarks == "none":
        return np.empty(0, np.float32)
    read = landmark_vector if shape.landmarks == "full" else landmark_places
    return read(points, corner, shape.image_size, shape.landmark_count)


def random_corners(image: np.ndarray, size: int, count: int = CROPS) -> np.ndarray:
    """Top and left edges (K, 2) of the crops of a picture that `fit` gave. All positions are equally likely.

    The picture's pixels are the seed. In a picture of exactly the crop's size there is one position, and so K is 1.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return np.zeros((1, 2), np.int64)
    rng = np.random.default_rng(content_seed(image))
    return rng.integers(0, (height - size + 1, width - size + 1), (count, 2))


def content_seed(image: np.ndarray) -> int:
    """A number that depends on the pixels and the shape of a picture, and on nothing else."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest()[:8])


def cut(image: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """The crops (K, size, size, 3) at top-left corners (K, 2)."""
    return np.stack([image[top : top + size, left : left + size] for top, left in corners.tolist()])


def inside(points: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    """Which landmarks (P, 2), x and y, lie in the crop at a top-left corner (2,), the edges included: bool (P,)."""
    places = points - corner[::-1]
    return ((places >= 0) & (places <= size)).all(axis=1)


def landmark_vector(points: np.ndarray | None, corner: np.ndarray, size: int, length: int = 500) -> np.ndarray:
    """What the published network reads of the landmarks: float32 (length,) in [-1, 1].

    The numbers of the landmarks in the crop, in rising order; behind them, up to `length`, the number of landmarks plus
    one; all brought from least and largest to [-1, 1]. Without any landmark in the crop every entry is -1. Of more than
    `length` a part is taken that depends on the crop's corner only.
    """
    seen = np.flatnonzero(inside(points, corner, size)) if points is not None else np.empty(0)
    if len(seen) > length:
        seen = np.random.default_rng(corner).choice(seen, length, replace=False)
    vector = np.full(length, 1.0 + (0 if points is None else len(points)))
    vector[: len(seen)] = seen
    low, high = vector.min(), vector.max()
    return (2 * (vector - low) / (high - low + 1e-6) - 1).astype(np.float32)


def landmark_places(points: np.ndarray | None, corner: np.ndarray, size: int, count: int = 68) -> np.ndarray:
    """What the light landmark layer reads: x and y of each landmark as shares of the crop's side, float32 (count, 2),
    ABSENT for one outside the crop, and for all of a picture without landmarks. Raises ValueError for another count."""
    if points is None:
        return np.full((count, 2), ABSENT, np.float32)
    if len(points) != count:
        raise ValueError(f"the network reads {count} landmarks and the picture has {len(points)}")
    seen = inside(points, corner, size)[:, None]
    return np.where(seen, (points - corner[::-1]) / size, ABSENT).astype(np.float32)


def mirrored(image: np.ndarray, points: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The mirror image, left and right exchanged, with its 68 landmarks: moved, and numbered as in any other picture.

    Raises ValueError for another number of landmarks, of which the pairs are unknown.
    """
    flipped = np.ascontiguousarray(image[:, ::-1])
    if points is None:
        return flipped, None
    if len(points) != len(MIRRORED):
        raise ValueError(f"a picture can be mirrored with {len(MIRRORED)} landmarks; it has {len(points)}")
    return flipped, (points * (-1, 1) + (image.shape[1] - 1, 0))[MIRRORED]


def read_landmarks(path: str, image: np.ndarray) -> np.ndarray:
    """The landmarks (P, 2), x and y in pixels of the picture, of a published `.npy` file.

    Raises ValueError, in one line, when it holds something else, or when most points lie outside the picture.
    """
    try:
        points = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"the landmark file {path} does not exist") from error
    except Exception as error:  # numpy parses the header as Python and raises whatever that raises
        raise ValueError(f"{path} is no .npy file of numbers: an array (points, 2) was expected") from error
    if not isinstance(points, np.ndarray):  # an .npz by another name
        raise ValueError(f"{path} is no .npy file of numbers: an array (points, 2) was expected")
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or points.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {points.dtype} {points.shape}: x and y of each landmark, (points, 2), expected")
    height, width = image.shape[:2]
    outside = ~((points >= 0) & (points <= (width, height))).all(axis=1)  # a number that is NaN too
    if 2 * outside.sum() > len(points) or not np.isfinite(points).all():
        raise ValueError(
            f"{path}: {outside.sum()} of {len(points)} landmarks lie outside the picture of {width}x{height} pixels; "
            "it is the file of another picture, or of another size of this one"
        )
    return points.astype(np.float64)


def _shortened(image: np.ndarray, points: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The middle of a picture that is longer than LONGEST times its shorter side."""
    height, width = image.shape[:2]
    longest = LONGEST * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    if not (top or left):
        return image, points
    return image[top : top + longest, left : left + longest], None if points is None else points - (left, top)


def _resized(
    image: np.ndarray, points: np.ndarray | None, scale: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Bilinear, antialiased, as every picture of the project. Pixel centres have whole coordinates."""
    height, width = image.shape[:2]
    new = (round(width * scale), round(height * scale))
    resized = np.array(Image.fromarray(np.ascontiguousarray(image)).resize(new, Image.Resampling.BILINEAR))
    return resized, None if points is None else (points + 0.5) * (np.array(new) / (width, height)) - 0.5
