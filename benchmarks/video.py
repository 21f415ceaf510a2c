"""Does the memory of inference.py grow with the length of a video?

    python benchmarks/video.py --results results
    python benchmarks/video.py --minutes 1 3        # in a few minutes

Makes videos of 640x360 pixels with 10 frames a second in which the sample faces move about, come and go. Each is scored
with `--every 20`, so every two seconds, and the three best shots of each face are written. The videos repeat their
first minute, so each minute costs the same and brings as many new tracks. Needs PyAV, and Linux for the peak memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import positive  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402

WIDTH, HEIGHT, RATE = 640, 360, 10
EVERY = 20  # of the frames one is looked at
MINUTE = 60 * RATE  # frames
STAY = 8 * RATE  # frames that a face stays
BREAK = 2 * RATE  # frames without a face behind it, so that its track ends
SIDE = 150  # pixels of a pasted crop
COLUMNS = [
    Column("minutes of video"),
    Column("frames with a face", "{:,}"),
    Column("rows", "{:,}"),
    Column("tracks", "{:,}"),
    Column("shots written", "{:,}"),
    Column("peak memory, MB", "{:.0f}"),
    Column("processor seconds a minute", "{:.1f}"),
]


def pictures() -> Iterator[np.ndarray]:
    """One minute: one sample face after the other crosses the picture, with a second one in every other turn."""
    paths = sorted((ROOT / "samples").glob("*.png"))
    faces = [Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for path in paths]
    for number in range(MINUTE):
        turn, frame = divmod(number, STAY + BREAK)
        picture = Image.new("RGB", (WIDTH, HEIGHT), (96, 104, 112))
        if frame < STAY:
            picture.paste(faces[turn % len(faces)], (20 + frame, 30 + round(20 * np.sin(frame / 9))))
            if turn % 2:
                picture.paste(faces[(turn + 3) % len(faces)], (460 - frame, 190))
        yield np.asarray(picture)


def write_minute(path: Path) -> None:
    av = _pyav()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def repeat(minute: Path, minutes: int, path: Path) -> None:
    """Write the packets of a video so many times, one after the other, without coding them anew."""
    av = _pyav()
    with av.open(str(path), "w") as target:
        stream = None
        for i in range(minutes):
            with av.open(str(minute)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                length = round(60 / source.streams.video[0].time_base)
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + i * length, packet.dts + i * length, stream
                        target.mux(packet)


def measured(minutes: int, minute: Path, folder: Path) -> list[Cell]:
    """The row of a video of this length."""
    video, table, shots = folder / f"{minutes}.mkv", folder / f"{minutes}.csv", folder / f"shots{minutes}"
    repeat(minute, minutes, video)
    command = [sys.executable, str(ROOT / "inference.py"), str(video), "--every", str(EVERY), "--output", str(table)]
    command += ["--best-per", "track", "3", "--copy-to", str(shots), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    messages = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise RuntimeError(f"inference.py failed: {messages}")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    looked = len({row["frame"] for row in rows})
    tracks = len({row["track"] for row in rows})
    seconds = (used.ru_utime + used.ru_stime) / minutes
    return [minutes, looked, len(rows), tracks, len(list(shots.iterdir())), used.ru_maxrss / 1024, seconds]


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install av") from error
    return av


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        minute = folder / "minute.mkv"
        write_minute(minute)
        command = "python benchmarks/video.py"
        output = Output(args.results, command, ("clib-fiqa", "center-face", "face-points"))
        rows = (measured(minutes, minute, folder) for minutes in args.minutes)
        output.add("video", "Peak memory against the length of a video", COLUMNS, rows)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, nargs="+", default=[1, 10, 60], help="lengths (1 10 60)")
    return report_exit_code(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
