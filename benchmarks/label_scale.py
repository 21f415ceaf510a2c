"""What large sets cost generate_labels.py after the networks: time of the anchors against a header, and memory.

    python benchmarks/label_scale.py --rows 200000 --images 2000 --classes 85742

Random embeddings of 512 numbers. The header's anchors once as they are computed now, once with the kernel normalised
in each block, as before. Then the whole way of `--rows` embeddings: written by `measure`, memory-mapped, turned into
anchors against class centres. It prints the peak of anonymous memory (Linux), which is what a process really needs:
pages of the memory-mapped files can be dropped at any time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from faces.workers import Loaded
from labels import measure as measuring
from labels.anchors import BLOCK_ELEMENTS, EmbeddedFaces, Header, centre_similarities
from model.iresnet import ArcFaceHeader

WIDTH = 512


def header_seconds(images: int, classes: int) -> tuple[float, float]:
    """Now, and with the kernel normalised for each block."""
    generator = np.random.default_rng(0)
    faces = EmbeddedFaces(
        generator.normal(size=(images, WIDTH)).astype(np.float32), [f"{row % classes}/{row}" for row in range(images)]
    )
    header = Header(ArcFaceHeader(WIDTH, classes), {str(index): index for index in range(classes)})

    def before() -> None:
        size = BLOCK_ELEMENTS // classes
        own = torch.arange(images) % classes
        for start in range(0, images, size):
            block = slice(start, start + size)
            header.network.similarities(torch.from_numpy(faces.block(block)), own[block])

    return seconds(lambda: header.similarities(faces)), seconds(before)


def measured(rows: int, batch: int, folder: Path) -> tuple[EmbeddedFaces, float]:
    """Embeddings as `measure` returns them, and the seconds of writing one array per column."""
    names = [f"{row // 20:06}/{row % 20:02}.jpg" for row in range(rows)]

    def compute(loaded: Sequence[Loaded[Any]]) -> measuring.Columns:
        generator = np.random.default_rng(int(loaded[0].path[:6]))
        embeddings = generator.normal(size=(len(loaded), WIDTH)).astype(np.float32)
        return {"status": np.array(["ok"] * len(loaded)), "embeddings": embeddings}

    def batches(paths: Sequence[str], *_: Any) -> Any:
        for start in range(0, len(paths), batch):
            yield [Loaded(path, "ok", None) for path in paths[start : start + batch]]

    start = time.perf_counter()
    with patch.object(measuring, "load_batches", batches):
        columns = measuring.measure(Path(), names, lambda image: image, compute, folder, batch, 0)
    return EmbeddedFaces(columns["embeddings"], names), time.perf_counter() - start


class PeakMemory:
    """The largest anonymous memory of this process in the block, looked at every 10 ms; in MB above its beginning."""

    def __enter__(self) -> PeakMemory:
        self.first = self.peak = anonymous_memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    @property
    def growth(self) -> float:
        return (self.peak - self.first) / 1000

    def _watch(self) -> None:
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, anonymous_memory())


def anonymous_memory() -> int:
    """In kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=2000, help="for the header")
    parser.add_argument("--classes", type=int, default=85_742, help="of the header")
    args = parser.parse_args()
    now, before = header_seconds(args.images, args.classes)
    print(f"header, {args.images} images x {args.classes} classes: {now:.1f} s, kernel normalised in each block "
          f"{before:.1f} s ({before / now:.1f} times as long)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with PeakMemory() as memory:
            faces, duration = measured(args.rows, 32, Path(folder))
        files = len(list(Path(folder).iterdir()))
        print(f"measure, {args.rows} rows: {duration:.1f} s, {files} files, {memory.growth:.0f} MB more memory")
        with PeakMemory() as memory:
            duration = seconds(lambda: centre_similarities(faces, faces))
        print(f"class centres, {args.rows} rows, {args.rows // 20} classes: {duration:.1f} s, "
              f"{memory.growth:.0f} MB more memory")


if __name__ == "__main__":
    main()
