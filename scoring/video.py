"""Scoring the faces of videos: a row for each face in each frame that is looked at, and the best shots as pictures."""

from __future__ import annotations

import os
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
from .select import places
from .tables import Row


def video_scores(
    scorer: Scorer, path: str, every: int = 1, rate: float = 25.0, faces: str = "all"
) -> Iterator[Score]:
    """The score of each face in each `every`-th frame of a video file, or of a folder of frames (`rate` a second).
    `faces` says which faces of a frame count, whatever the scorer does with pictures.

    `frame`, `time` and `track` say when it was seen, and which faces of other frames continue it. Frames that are taken
    whole, aligned crops or those of a method that takes pictures, have no track. A frame that cannot be read gives a
    score with its status, its number and its time. A video that cannot be read at all, or shows no face, gives one
    score with its status. The memory does not grow with the length of the video. Raises ImportError without PyAV.
    """
    tracker, seen = Tracker(), False
    try:
        pictures = frames_of(path, every, rate, scorer.max_bytes, with_lost=True)
        while batch := list(islice(pictures, scorer.batch_size)):
            loaded = [
                scorer.load(f.rgb, faces=faces) if f.status == "ok" else Loaded("", f.status, None) for f in batch
            ]
            for frame, item, found in zip(batch, loaded, scorer.score_each(loaded), strict=True):
                if item.status not in ("ok", "no_face"):
                    seen = True
                    yield Score(path, item.status, frame=frame.number, time=frame.seconds)
                    continue
                scores = found if item.value is not None else []
                boxes = np.array([score.box for score in scores if score.box]).reshape(-1, 4)
                tracks = iter(tracker.link(boxes, frame.seconds))
                for score in scores:
                    seen, track = True, next(tracks) if score.box else None
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
    """Write the aligned crop of each row that is of a video, as VIDEO_trackT_frameN_faceF.png, or the frame that was
    taken whole, as VIDEO_frameN.png; how many.

    They are placed in the folder, which exists, as `select.copy_files` places copies: in the sub-folders of the videos
    beyond their common one. The videos are read once more, since no frame was kept. Raises RuntimeError when a video is
    not as it was.
    """
    shots = [row for row in rows if row["frame"] is not None]
    wanted: dict[str, dict[int, list[tuple[Row, Path]]]] = defaultdict(lambda: defaultdict(list))
    taken: set[Path] = set()
    free = places(lambda: map(shot_name, shots), folder, lambda target: target in taken or target.exists())
    for row, (_, target) in zip(shots, free, strict=True):
        taken.add(target)
        wanted[row["path"]][row["frame"]].append((row, target))
    for path, at in wanted.items():
        missing, last = set(at), max(at)
        for frame in frames_of(path, every, rate, max_bytes):
            for row, target in at.get(frame.number, ()):
                points = row["points"] and np.reshape(row["points"], (5, 2))
                shot = frame.rgb if points is None else warp(frame.rgb, points, ARCFACE_POINTS, SIZE)
                with replacing(target) as temporary:
                    Image.fromarray(shot).save(temporary, "PNG")
            missing.discard(frame.number)
            if frame.number >= last:
                break
        if missing:
            raise RuntimeError(f"{path} was scored, and is not as it was any more: its shots are not written")
    return len(shots)


def shot_name(row: Row) -> str:
    """A name for the shot of a row beside its video, which may be a folder such as `.` too."""
    name = os.path.basename(os.path.abspath(row["path"])) or "video"
    face = f"_track{row['track']}_frame{row['frame']}_face{row['face']}" if row["points"] else f"_frame{row['frame']}"
    return str(Path(row["path"]).parent / f"{name}{face}.png")
