"""The one image reader: from a file, bytes, a PIL image or an array to RGB uint8 (H, W, 3).

It decodes only JPEG, PNG, WebP, BMP, TIFF and GIF, never more than a stated number of pixels, and reports whatever is
wrong with a picture as an `ImageError` with a short machine-readable status.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
MID_GREY = (128, 128, 128, 255)   # RGBA of the background that shows through transparent pixels

_FIRST_BYTES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF.{4}WEBP|BM|II[*+]\0|MM\0[*+]|GIF8[79]a", re.DOTALL)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(RuntimeError):
    """A picture that cannot be used. `status` says why: missing, not_a_file, empty, unreadable (by permission or by a
    failing disk), not_an_image (or not one of the six formats), truncated (cut off or damaged), too_large, no_face."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)   # both, so that the error survives the way back from a worker process
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


def read_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a file, or the bytes of one, to an upright RGB uint8 array (H, W, 3).

    The EXIF orientation is applied, 16-bit and float samples are scaled to 8 bits, transparent pixels are composited on
    mid grey, and of several frames the first is taken. Raises ImageError, and nothing else, for any bad picture.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the given bytes", max_pixels)
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):   # looked at before opening, which would wait for the writer of a pipe
            raise ImageError("not_a_file", f"{source} is a folder, a pipe or a device; an image file was expected")
        with open(source, "rb") as stream:
            return _decode(stream, str(source), max_pixels)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:   # ValueError: a NUL character in the path
        raise ImageError("missing", f"{source} does not exist") from error
    except OSError as error:
        raise ImageError("unreadable", f"{source} cannot be read: {error.strerror or error}") from error


def to_rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    """The RGB uint8 array (H, W, 3), contiguous, of a PIL image of any mode or of a uint8 array (H, W, 3) or (H, W).

    Raises ImageError for a PIL image whose file is damaged, and ValueError for an array of another type or shape.
    """
    if isinstance(image, Image.Image):
        with _decoding("the PIL image"):
            return _pil_to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size == 0 or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image array must be uint8 with the shape (H, W, 3) in RGB order or (H, W), not {given}")
    return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> np.ndarray:
    head = stream.read(16)
    if not head:
        raise ImageError("empty", f"{name}: the file is empty")
    if not _FIRST_BYTES.match(head):
        raise ImageError("not_an_image", f"{name} is not a JPEG, PNG, WebP, BMP, TIFF or GIF")
    stream.seek(0)
    with _decoding(name), Image.open(stream, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:   # known from the header, before anything is decoded
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, limit {max_pixels:,}")
        return _pil_to_rgb(image)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn everything that Pillow raises for a bad picture into an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageError("too_large", f"{name} is too large: {error}") from error
    except Exception as error:   # hostile bytes make its decoders raise errors of many types
        raise ImageError("truncated", f"{name} is cut off, damaged or of an unsupported kind: {error}") from error


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    image.load()
    if (turn := _orientation(image)) in _UPRIGHT:
        image = image.transpose(_UPRIGHT[turn])
    if image.mode[0] in "IF":
        return to_rgb(_to_8_bits(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, MID_GREY), image.convert("RGBA"))
    return to_rgb(np.array(image.convert("RGB")))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:   # damaged metadata, of whatever kind, does not make the picture unusable
        return 1


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Samples of more than 8 bits, modes I;16*, I and F, to grey uint8 (H, W).

    I and F do not say how far their samples reach: the smallest of 1 (floats only), 8, 16 and 32 bits that holds them
    all. Pillow's own conversion would clip 16 bits to black and white.
    """
    values = np.nan_to_num(np.asarray(image, np.float64)).clip(0, 2**32 - 1)
    if image.mode.startswith("I;16"):
        return (values / 2**8).astype(np.uint8)
    if image.mode == "F" and values.max() <= 1:
        return np.rint(values * 255).astype(np.uint8)
    return (values / next(step for step in (1, 2**8, 2**24) if values.max() < 256 * step)).astype(np.uint8)
