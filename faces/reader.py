"""The one image reader: from a file, bytes, a PIL image or an array to RGB uint8 (H, W, 3).

It decodes only JPEG, PNG, WebP, BMP, TIFF and GIF, within limits of bytes, pixels and time (`headers.py` has those of
the formats), and reports whatever is wrong with a picture as an `ImageError` with a short machine-readable status.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .headers import (
    HeaderError,
    TooMuchError,
    checked,
    exif_orientation,
    is_known_format,
    libtiff_heard,
    require_undamaged,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000   # of a file: 50 megapixels without compression, with four channels
MAX_SECONDS = 5.0   # of the processor, not of the clock: a busy machine refuses nothing
MID_GREY = (128, 128, 128, 255)   # RGBA of the background that shows through transparent pixels
BLOCK_PIXELS = 1 << 20   # pixels that are converted at once, which bounds the memory of the copies

_MOST_DEEP = 2**32 - 1   # of a sample in the modes I and F


class ImageError(RuntimeError):
    """A picture that cannot be used. `status` says why: missing, not_a_file, linked_folder (below a folder: it is not
    entered), empty, unreadable (by permission or by a failing disk), not_an_image (or not one of the six formats),
    truncated (cut off or damaged, also where a decoder could repair it), too_large (bytes, pixels, or parts of the
    file), too_slow (to decode), no_face."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)   # both, so that the error survives the way back from a worker process
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


def read_image(
    source: str | Path | bytes,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Decode a file, or the bytes of one, to an upright RGB uint8 array (H, W, 3).

    The EXIF orientation is applied, 16-bit and float samples are scaled to 8 bits, transparent pixels are composited on
    mid grey, and of several frames the first is taken. Raises ImageError, and nothing else, for any bad picture.

    `max_seconds` counts processor time. It holds in the main thread of a process, on systems with SIGPROF.
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else _content(source, max_bytes)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:   # ValueError: a NUL character in the path
        raise ImageError("missing", f"{name} does not exist") from error
    except OSError as error:
        raise ImageError("unreadable", f"{name} cannot be read: {error.strerror or error}") from error
    if not content:
        raise ImageError("empty", f"{name}: the file is empty")
    if len(content) > max_bytes:
        raise ImageError("too_large", f"{name} has more than {max_bytes:,} bytes, which is the limit")
    if not is_known_format(content):
        raise ImageError("not_an_image", f"{name} is not a JPEG, PNG, WebP, BMP, TIFF or GIF")
    with _decoding(name), _time_limit(max_seconds):
        content = checked(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:   # known from the header, before anything is decoded
                raise TooMuchError(f"{image.width} x {image.height} pixels, limit {max_pixels:,}")
            require_undamaged(content, max_pixels)
            return _pil_to_rgb(image)


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


def _content(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a regular file, one more than the limit at most. Raises OSError, ValueError or ImageError."""
    _require_file(path, os.stat(path))   # before opening, which can change what a device does
    with open(path, "rb", opener=_open_without_waiting) as stream:
        status = os.fstat(stream.fileno())
        _require_file(path, status)   # the file of that name may be another one now
        if status.st_size > max_bytes:
            raise ImageError("too_large", f"{path} has {status.st_size:,} bytes, limit {max_bytes:,}")
        return stream.read(max_bytes + 1) if status.st_size else b""   # files of /proc have no size and may wait


def _require_file(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode) and os.path.islink(path):   # as `list_images` gives them
        raise ImageError("linked_folder", f"{path} is a link to a folder, which is not entered; name it to read it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not_a_file", f"{path} is a folder, a pipe or a device; an image file was expected")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))   # else a pipe would wait for its writer


class _TooSlowError(RuntimeError):
    """The time limit of a picture is over."""


_limited = False   # whether a picture with a time limit is being decoded


def _stop_if_limited(*_: object) -> None:
    if _limited:
        raise _TooSlowError


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooSlowError in the block after so much processor time of this process, again and again until it ends.

    Without effect outside of the main thread, which alone receives signals, and where a profiler uses SIGPROF.
    """
    global _limited
    free = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGPROF) in (signal.SIG_DFL, _stop_if_limited)
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGPROF, _stop_if_limited)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    _limited = True
    try:
        yield
    finally:
        _limited = False
        signal.setitimer(signal.ITIMER_PROF, 0)


@cache
def _quiet_pillow() -> None:
    """Give Pillow's log a place: else Python prints what it logs of bad pictures."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn everything that Pillow raises for a bad picture into an ImageError."""
    _quiet_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except _TooSlowError as error:
        raise ImageError("too_slow", f"{name} takes too long to decode") from error
    except (TooMuchError, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageError("too_large", f"{name} is too large: {error}") from error
    except HeaderError as error:
        raise ImageError("truncated", f"{name} is cut off or damaged: {error}") from error
    except Exception as error:   # hostile bytes make its decoders raise errors of many types
        raise ImageError("truncated", f"{name} is cut off, damaged or of an unsupported kind: {error}") from error


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    """Block by block, as a copy of a large picture takes hundreds of megabytes and each step makes one."""
    with libtiff_heard() if image.format == "TIFF" else nullcontext():
        image.load()
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    largest = max((block.max() for _, block in _samples(image)), default=0) if _is_deep(image) else 0
    if _is_deep(image):
        for rows, block in _samples(image):
            rgb[rows] = _to_8_bits(block, image.mode, largest)[..., None]
    else:
        for rows, part in _blocks(image):
            rgb[rows] = _opaque(part)
    return to_rgb(_upright(rgb, exif_orientation(image)))


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _blocks(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture in blocks of whole rows."""
    height = max(1, BLOCK_PIXELS // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _samples(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    for rows, part in _blocks(image):
        yield rows, np.nan_to_num(np.asarray(part, np.float64)).clip(0, _MOST_DEEP)


def _opaque(image: Image.Image) -> np.ndarray:
    """RGB (H, W, 3) of a picture of at most 8 bits, on mid grey where it is transparent."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, MID_GREY), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the eight orientations of EXIF."""
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb


def _to_8_bits(values: np.ndarray, mode: str, largest: float) -> np.ndarray:
    """Samples of more than 8 bits, modes I;16*, I and F, to grey uint8; `largest` is that of the whole picture.

    I and F do not say how far their samples reach: the smallest of 1 (floats only), 8, 16 and 32 bits that holds them
    all. Pillow's own conversion would clip 16 bits to black and white.
    """
    if mode.startswith("I;16"):
        return (values / 2**8).astype(np.uint8)
    if mode == "F" and largest <= 1:
        return np.rint(values * 255).astype(np.uint8)
    return (values / next(step for step in (1, 2**8, 2**24) if largest < 256 * step)).astype(np.uint8)
