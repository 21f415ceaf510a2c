"""Score aligned face crops with the network beside this file. It needs numpy, Pillow and onnxruntime, nothing else.

    python scorer.py crops                          a folder: a table on the terminal
    python scorer.py crops --output scores.csv      into a file; .jsonl holds all probabilities
    python scorer.py a.png 'b/*.jpg' @more.txt -    files, patterns, a list of paths, and a list on standard input

    from scorer import Scorer
    row = Scorer().score("face.png")                {"path": …, "status": "ok", "quality": …, "factors": {…}, …}

A picture is taken as an aligned crop, whatever its size: no face is looked for. README.md says what aligned means. A
picture that cannot be scored is a row with its status (missing, not_an_image, truncated, …) and stops nothing.
Exit code: 0 when all were scored, 1 when some were not, 2 when the call was wrong, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
from PIL import Image

from faces.listing import expand_inputs
from faces.reader import ImageError, read_image, to_rgb
from model.files import open_text, printable, replacing, write_csv_rows

FACTORS = ("blur", "occlusion", "pose", "expression", "illumination")
COLUMNS = ("path", "status", "quality", *FACTORS)
SUFFIXES = (".csv", ".jsonl")
Row = dict[str, Any]


class Scorer:
    """The network in `folder` (default: that of this file).

    `providers` are those of onnxruntime, such as CUDAExecutionProvider (default: the CPU). `threads` is the number of
    CPU threads (default: the number of cores).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        threads: int = 0,
    ) -> None:
        here = Path(folder) if folder is not None else Path(__file__).parent
        self.settings: dict[str, Any] = json.loads((here / "settings.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # they make a CPU several times slower
        # In a thread of its own: else denormal numbers would count as zero in the caller's thread too.
        self.thread = ThreadPoolExecutor(1, "onnxruntime")
        make = partial(onnxruntime.InferenceSession, os.fspath(here / "model.onnx"), options, providers=list(providers))
        self.session = self.thread.submit(make).result()
        self.size: int = self.settings["input"]["size"]
        self.dtype = np.dtype(self.settings["input"]["type"])
        self.axes: dict[str, list[str]] = self.settings["axes"]
        self.batch_size: int = self.settings["batch_size"]

    def score(self, images: Any) -> Any:
        """One image -> its row; a list, a tuple or a batch (N, H, W, 3) -> a list of rows, in order.

        An image is a path, the bytes of an image file, a PIL image, or an RGB uint8 array (H, W, 3) or (H, W). Raises
        TypeError or ValueError for anything else.
        """
        if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4):
            return list(self.stream(images))
        return next(self.stream([images]))

    def stream(self, images: Iterable[Any]) -> Iterator[Row]:
        """A row for each image, in order, for any number of images."""
        remaining = iter(images)
        while batch := list(islice(remaining, self.batch_size)):
            yield from self._rows(batch)

    def crop(self, image: Any) -> np.ndarray:
        """An image as the network takes it: RGB uint8 (size, size, 3). Raises ImageError for a bad picture."""
        if isinstance(image, str | Path | bytes):
            rgb = read_image(image)
        elif isinstance(image, np.ndarray | Image.Image):
            rgb = to_rgb(image)
        else:
            kind = type(image).__name__
            raise TypeError(f"cannot score a {kind}: a path, bytes, a PIL image or an array was expected")
        if rgb.shape[:2] == (self.size, self.size):
            return rgb
        return np.array(Image.fromarray(rgb).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def predict(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Crops (N, size, size, 3) with values from 0 to 255 -> each output of the network by its name."""
        inputs = {self.settings["input"]["name"]: crops.astype(self.dtype)}
        outputs = self.thread.submit(self.session.run, self.settings["outputs"], inputs).result()
        return dict(zip(self.settings["outputs"], outputs, strict=True))

    def _rows(self, images: Sequence[Any]) -> Iterator[Row]:
        crops, statuses = [], []
        for image in images:
            try:
                crops.append(self.crop(image))
                statuses.append("ok")
            except ImageError as error:
                statuses.append(error.status)
        outputs = self.predict(np.stack(crops)) if crops else {}
        place = 0
        for image, status in zip(images, statuses, strict=True):
            path = os.fspath(image) if isinstance(image, str | Path) else None
            if status != "ok":
                yield self._row(path, status, {})
                continue
            of_image = {name: values[place] for name, values in outputs.items()}
            place += 1
            finite = math.isfinite(of_image["quality"])
            yield self._row(path, "ok", of_image) if finite else self._row(path, "non_finite", {})

    def _row(self, path: str | None, status: str, of_image: dict[str, np.ndarray]) -> Row:
        quality = float(f"{float(of_image['quality']):.7g}") if of_image else None
        levels = {name: self._levels(name, of_image[name]) for name in self.axes if name in of_image}
        distribution = levels.pop("quality_distribution", None)
        best = {name: max(found, key=found.__getitem__) for name, found in levels.items()}
        return {
            "path": path,
            "status": status,
            "quality": quality,
            **{factor: best.get(factor) for factor in FACTORS},
            "factors": levels or None,
            "quality_distribution": list(distribution.values()) if distribution else None,
            "percentile": None if quality is None else self.percentile(quality),
        }

    def _levels(self, axis: str, probabilities: np.ndarray) -> dict[str, float]:
        return {level: round(float(p), 6) for level, p in zip(self.axes[axis], probabilities, strict=True)}

    def percentile(self, quality: float) -> float | None:
        """The share, in percent, of the images of the set `settings["percentiles"]["set"]` that score lower."""
        table = self.settings["percentiles"]
        if table is None:
            return None
        values = table["quality"]
        return round(float(np.interp(quality, values, np.linspace(0, 100, len(values)))), 2)


def write_rows(file: IO[str], rows: Iterable[Row], suffix: str) -> Counter[str]:
    """Write a table and count its rows by status. CSV that a spreadsheet opens computes nothing."""
    statuses: Counter[str] = Counter()
    if suffix == ".csv":
        write_csv_rows(file, [COLUMNS])
    for row in rows:
        statuses[row["status"]] += 1
        if suffix == ".csv":
            write_csv_rows(file, [[row[column] for column in COLUMNS]])
        else:
            file.write(json.dumps(row) + "\n")
    return statuses


def run(args: argparse.Namespace) -> int:
    """Score the images of the command line; return the exit code."""
    if args.output and args.output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output must end in {' or '.join(SUFFIXES)}, not {args.output.name!r}")
    scorer = Scorer(threads=args.threads)
    rows = scorer.stream(expand_inputs(args.images, sys.stdin))
    if not args.output:
        shown = ({**row, "path": printable(row["path"])} for row in rows)
        return code_of(write_rows(sys.stdout, shown, ".csv"), args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.output) as temporary, open_text(temporary, "w") as file:
        return code_of(write_rows(file, rows, args.output.suffix.lower()), args)


def code_of(statuses: Counter[str], args: argparse.Namespace) -> int:
    """0 when all images were scored, else 1. Raises ValueError when there were none."""
    if not statuses:
        raise ValueError(f"there are no images in {' '.join(args.images)}")
    return 0 if set(statuses) == {"ok"} else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="PATH", help="file, folder, pattern, @list of paths, or -")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a .csv or .jsonl table (default: print it)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: the cores)")
    args = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # file names need not be UTF-8
    try:
        return run(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
