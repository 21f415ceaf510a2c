"""Frames of a video with their times, and tracks: the faces of one person in successive frames.

Videos are decoded by PyAV, an extra (`pip install av`). Only one frame is held at a time, so the length of a video does
not change the memory that it needs.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .listing import list_images
from .reader import MAX_BYTES, ImageError, read_image

T = TypeVar("T")

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")
LEAST_OVERLAP = 0.3   # intersection over union of one face in two successive frames that are looked at
PATIENCE = 1.0        # seconds without its face after which a track ends
LATE = 0.05, 1.0      # a video may end before its header says: this share of its length, and so many seconds, at most
NOTHING = np.zeros((0, 0, 3), np.uint8)


class Frame(NamedTuple):
    """One picture of a video."""

    number: int
    """From 0 on, counting also the frames that were left out."""
    seconds: float
    """Time since the first frame."""
    rgb: np.ndarray
    """uint8 (H, W, 3), upright."""
    status: str = "ok"
    """Why there is no picture (`ImageError.status`); `rgb` is then `NOTHING`."""


def is_video(path: str) -> bool:
    """Whether the path ends in one of `VIDEO_SUFFIXES`."""
    return path.lower().endswith(VIDEO_SUFFIXES)


def frames(path: str | Path, every: int = 1, with_lost: bool = False) -> Iterator[Frame]:
    """Every `every`-th frame of a video, in order, turned upright as its metadata says.

    Frames that cannot be decoded, or of which the decoder had to guess a part, are left out. `with_lost` gives a frame
    with the status truncated for each stretch of them, and at the end for a video that is cut off or whose container is
    damaged. Raises ImageError (missing, not_a_video, truncated) when there is no frame at all, ImportError without
    PyAV, ValueError for `every` below 1.
    """
    if every < 1:
        raise ValueError(f"every {every}: at least 1 was expected, which takes each frame")
    av = _pyav()
    if not os.path.isfile(path):
        raise ImageError("missing", f"{path} does not exist or is no file; a video was expected")
    number, seconds, rate, start = -1, 0.0, 25.0, None
    whole = True   # the frame before could be decoded
    try:
        with av.open(os.fspath(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or rate)
            for number, frame in enumerate(_decoded(container, stream)):
                if frame is None or frame.is_corrupt:
                    if with_lost and whole:
                        yield Frame(number, seconds + (1 / rate if number else 0), NOTHING, "truncated")
                    whole = False
                    continue
                whole, seconds = True, number / rate
                if frame.time is not None:   # streams for broadcasting begin at any time
                    start = frame.time - seconds if start is None else start
                    seconds = float(frame.time - start)
                if number % every == 0:
                    yield Frame(number, seconds, _upright(frame.to_ndarray(format="rgb24"), frame.rotation))
    except (av.FFmpegError, IndexError) as error:   # IndexError: sound without pictures
        if number < 0:
            raise ImageError("not_a_video", f"{path} holds no readable video: {error}") from error
        cut = True
    else:
        cut = (with_lost or number < 0) and _is_cut_off(path)
    if number < 0:
        raise ImageError("truncated" if cut else "not_a_video", f"{path}: the video holds no whole frame")
    if with_lost and whole and cut:
        yield Frame(number + 1, seconds + 1 / rate, NOTHING, "truncated")


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream, None in the place of each packet that cannot be decoded."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except _pyav().InvalidDataError:
            yield None


def _is_cut_off(path: str | Path) -> bool:
    """Whether a video ends before its header says, or the structure of a Matroska file is damaged.

    FFmpeg skips such parts without an error: it only logs what Matroska's reader meets. So the packets are read once
    more, without decoding. MPEG streams (.mpg, .ts) have no header that tells their length.
    """
    av = _pyav()
    try:
        with _libav_heard() as heard, av.open(os.fspath(path)) as container:
            stream, kind = container.streams.video[0], container.format.name
            ends = (float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux() if p.pts is not None)
            found = max(ends, default=0.0) - (container.start_time or 0) / av.time_base
            if kind == "avi":   # the duration that FFmpeg gives is of what is there
                length = float(stream.frames / (stream.average_rate or math.inf))
            else:
                length = (container.duration or 0) / av.time_base if kind.startswith(("matroska", "mov")) else 0.0
    except (av.FFmpegError, IndexError):
        return True
    damaged = any(name.startswith("matroska") for _, name, _ in heard)
    return damaged or found < length - min(LATE[0] * length, LATE[1])


@contextmanager
def _libav_heard() -> Iterator[list[tuple[int, str, str]]]:
    """The errors (level, name of the part, message) that FFmpeg logs in the block. Nothing else may decode then."""
    logging = _pyav().logging
    before = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)
    try:
        with logging.Capture() as heard:
            yield heard
    finally:
        logging.set_level(before[0])
        logging.set_skip_repeated(before[1])


def folder_frames(
    folder: str | Path, rate: float = 25.0, every: int = 1, max_bytes: int = MAX_BYTES, with_lost: bool = False
) -> Iterator[Frame]:
    """Every `every`-th picture of a folder of frames, in the order of the numbers in their names; `rate` a second.

    A frame that cannot be read is left out; `with_lost` gives it with its status. Raises ImageError (missing) when the
    folder holds no picture.
    """
    paths = sorted(list_images(folder), key=_by_numbers)
    if not paths:
        raise ImageError("missing", f"{folder} holds no picture; a folder of frames was expected")
    for number in range(0, len(paths), every):
        try:
            yield Frame(number, number / rate, read_image(paths[number], max_bytes=max_bytes))
        except ImageError as error:
            if with_lost:
                yield Frame(number, number / rate, NOTHING, error.status)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """A sorting key that puts frame_9 before frame_10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _upright(rgb: np.ndarray, degrees: int) -> np.ndarray:
    """Turn a picture counter-clockwise by a multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(rgb, round(degrees / 90) % 4))


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install av") from error
    return av


class Tracker:
    """Numbers the faces of successive frames, so that a face keeps its number from frame to frame.

    Pairs of a face and the last box of a track are taken in the order of their intersection over union, the largest
    first, as long as both are free. A face without such a track starts a new one. People who cross each other, or leave
    the picture for longer than `patience` seconds, get a new number: no face recognition is involved. A face of the
    frame before can go on however long ago that was, so that no track ends because few frames are looked at.
    """

    def __init__(self, least_overlap: float = LEAST_OVERLAP, patience: float = PATIENCE) -> None:
        self.least_overlap, self.patience = least_overlap, patience
        self._numbers = count()
        self._last: dict[int, tuple[np.ndarray, float]] = {}   # box and time of each open track
        self._before = -math.inf   # time of the frame before

    def link(self, boxes: np.ndarray, seconds: float) -> list[int]:
        """The track number of each box of a frame; boxes (N, 4) as left, top, right, bottom."""
        since = min(seconds - self.patience, self._before)
        self._last = {n: (box, at) for n, (box, at) in self._last.items() if at >= since}
        self._before = seconds
        tracks = list(self._last)
        numbers = [-1] * len(boxes)
        if tracks and len(boxes):
            overlap = overlaps(np.asarray(boxes, float), np.array([self._last[n][0] for n in tracks]))
            for place in np.argsort(-overlap, axis=None, kind="stable"):
                i, j = divmod(int(place), len(tracks))
                if overlap[i, j] < self.least_overlap:
                    break
                if numbers[i] < 0 and tracks[j] not in numbers:
                    numbers[i] = tracks[j]
        numbers = [next(self._numbers) if number < 0 else number for number in numbers]
        for number, box in zip(numbers, boxes, strict=True):
            self._last[number] = np.asarray(box, float), seconds
        return numbers


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4) as left, top, right, bottom: (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)
