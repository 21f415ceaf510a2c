"""Frames of a video with their times, and tracks: the faces of one person in successive frames.

Videos are decoded by PyAV, an extra (`pip install av`). Only one frame is held at a time, so the length of a video does
not change the memory that it needs.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
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


class Frame(NamedTuple):
    """One picture of a video."""

    number: int
    """From 0 on, counting also the frames that were left out."""
    seconds: float
    """Time since the first frame."""
    rgb: np.ndarray
    """uint8 (H, W, 3), upright."""


def is_video(path: str) -> bool:
    """Whether the path ends in one of `VIDEO_SUFFIXES`."""
    return path.lower().endswith(VIDEO_SUFFIXES)


def frames(path: str | Path, every: int = 1) -> Iterator[Frame]:
    """Every `every`-th frame of a video, in order, turned upright as its metadata says.

    A damaged part ends the video there: the frames before it are given. Raises ImageError (missing, not_a_video) when
    there is no frame at all, ImportError without PyAV, ValueError for `every` below 1.
    """
    if every < 1:
        raise ValueError(f"every {every}: at least 1 was expected, which takes each frame")
    av = _pyav()
    if not os.path.isfile(path):
        raise ImageError("missing", f"{path} does not exist or is no file; a video was expected")
    number, start = -1, None
    try:
        with av.open(os.fspath(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            for number, frame in enumerate(container.decode(stream)):
                seconds = number / rate
                if frame.time is not None:   # streams for broadcasting begin at any time
                    start = frame.time - seconds if start is None else start
                    seconds = float(frame.time - start)
                if number % every == 0:
                    yield Frame(number, seconds, _upright(frame.to_ndarray(format="rgb24"), frame.rotation))
    except (av.FFmpegError, IndexError) as error:   # IndexError: sound without pictures
        if number < 0:
            raise ImageError("not_a_video", f"{path} holds no readable video: {error}") from error


def folder_frames(
    folder: str | Path, rate: float = 25.0, every: int = 1, max_bytes: int = MAX_BYTES
) -> Iterator[Frame]:
    """Every `every`-th picture of a folder of frames, in the order of the numbers in their names; `rate` a second.

    A frame that cannot be read is left out. Raises ImageError (missing) when the folder holds no picture.
    """
    paths = sorted(list_images(folder), key=_by_numbers)
    if not paths:
        raise ImageError("missing", f"{folder} holds no picture; a folder of frames was expected")
    for number in range(0, len(paths), every):
        try:
            rgb = read_image(paths[number], max_bytes=max_bytes)
        except ImageError:
            continue
        yield Frame(number, number / rate, rgb)


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
