"""Scoring the faces of videos: a row for each face in each frame that is looked at, and the best shots as pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from faces.align import ARCFACE_POINTS, SIZE, warp
from faces.reader import ImageError
from faces.video import Frame, Tracker, folder_frames, frames
from faces.workers import Loaded
from model.files import replacing

from .score import Score
from .scorer import Scorer
from .tables import Row


def video_scores(scorer: Scorer, path: str, every: int = 1, rate: float = 25.0) -> Iterator[Score]:
    """The score of each face in each `every`-th frame of a video file, or of a folder of frames (`rate` a second).

    `frame`, `time` and `track` say when it was seen, and which faces of other frames continue it. A frame that cannot
    be read gives a score with its status, its number and its time. A video that cannot be read at all, or shows no
    face, gives one score with its status. The memory does not grow with the length of the video.
    Raises ImportError without PyAV.
    """
    tracker, seen = Tracker(), False
    try:
        pictures = frames_of(path, every, rate, scorer.max_bytes, with_lost=True)
        while batch := list(islice(pictures, scorer.batch_size)):
            loaded = [scorer.load(f.rgb) if f.status == "ok" else Loaded("", f.status, None) for f in batch]
            for frame, item, found in zip(batch, loaded, scorer.score_each(loaded), strict=True):
                if item.status not in ("ok", "no_face"):
                    seen = True
                    yield Score(path, item.status, frame=frame.number, time=frame.seconds)
                    continue
                scores = found if item.value is not None else []
                boxes = np.array([score.box or (0, 0, *frame.rgb.shape[1::-1]) for score in scores]).reshape(-1, 4)
                for score, track in zip(scores, tracker.link(boxes, frame.seconds), strict=True):
                    seen = True
                    yield replace(score, path=path, frame=frame.number, time=frame.seconds, track=track)
    except ImageError as error:
        seen = True
        yield Score(path, error.status)
    if not seen:
        yield Score(path, "no_face")


def frames_of(path: str, every: int, rate: float, max_bytes: int, with_lost: bool = False) -> Iterator[Frame]:
    """The frames of a video file or of a folder, `with_lost` those that cannot be read, too. Raises ImageError."""
    if Path(path).is_dir():
        return folder_frames(path, rate, every, max_bytes, with_lost)
    return frames(path, every, with_lost)


def write_shots(rows: Iterable[Row], folder: Path, every: int, rate: float, max_bytes: int) -> int:
    """Write the aligned crop of each row that is of a video, as VIDEO_trackT_frameN_faceF.png; how many.

    The videos are read once more, since no frame was kept.
    """
    wanted: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["frame"] is not None and row["points"]:
            wanted[row["path"]][row["frame"]].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for path, at in wanted.items():
        for frame in frames_of(path, every, rate, max_bytes):
            for row in at.get(frame.number, ()):
                crop = warp(frame.rgb, np.reshape(row["points"], (5, 2)), ARCFACE_POINTS, SIZE)
                name = f"{Path(path).name}_track{row['track']}_frame{frame.number}_face{row['face']}.png"
                with replacing(folder / name) as temporary:
                    Image.fromarray(crop).save(temporary, "PNG")
                count += 1
            if frame.number >= max(at):
                break
    return count
