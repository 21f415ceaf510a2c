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
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import labels.measure
from faces.workers import Loaded
from labels.anchors import BLOCK_ELEMENTS, EmbeddedFaces, Header, centre_similarities
from model.iresnet import ArcFaceHeader

WIDTH = 512
T = TypeVar("T")


def header_seconds(images: int, classes: int) -> tuple[float, float]:
    """Now, and as before: the kernel normalised for each block of images, and three tensors of cosines."""
    generator = np.random.default_rng(0)
    faces = EmbeddedFaces(
        generator.normal(size=(images, WIDTH)).astype(np.float32), [f"{row % classes}/{row}" for row in range(images)]
    )
    header = Header(ArcFaceHeader(WIDTH, classes), {str(index): index for index in range(classes)})

    @torch.no_grad()
    def before() -> None:
        size = BLOCK_ELEMENTS // classes
        labels = (torch.arange(images) % classes)[:, None]
        for start in range(0, images, size):
            own = labels[start : start + size]
            unit = F.normalize(torch.from_numpy(faces.block(slice(start, start + size))), dim=1)
            cosines = (unit @ F.normalize(header.network.kernel, dim=0)).clamp(-1, 1)
            cosines.gather(1, own), cosines.scatter(1, own, -torch.inf).amax(dim=1)

    return seconds(lambda: header.similarities(faces)), seconds(before)


def measured(names: Sequence[str], batch: int, folder: Path) -> EmbeddedFaces:
    """Embeddings as `measure` returns them."""

    def compute(loaded: Sequence[Loaded[Any]]) -> labels.measure.Columns:
        generator = np.random.default_rng(int(loaded[0].path[:6]))
        embeddings = generator.normal(size=(len(loaded), WIDTH)).astype(np.float32)
        return {"status": np.array(["ok"] * len(loaded)), "embeddings": embeddings}

    def batches(paths: Iterator[str], *_: Any) -> Iterator[list[Loaded[Any]]]:
        return iter(lambda: [Loaded(path, "ok", None) for path in islice(paths, batch)], [])

    with patch.object(labels.measure, "load_batches", batches):
        columns = labels.measure.measure(Path(), names, lambda image: image, compute, folder, batch, 0)
    return EmbeddedFaces(columns["embeddings"], names)


def watched(function: Callable[[], T]) -> tuple[T, float, float]:
    """What the function returns, how much the anonymous memory of this process grew at its peak (MB), and seconds."""
    first = peak = anonymous_memory()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        return function(), (peak - first) / 1000, time.perf_counter() - start
    finally:
        ended.set()
        thread.join()


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
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{row // 20:06}/{row % 20:02}.jpg" for row in range(args.rows)]
        faces, memory, duration = watched(lambda: measured(names, 32, Path(folder)))
        files = sorted(Path(folder).iterdir())
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"measure, {args.rows} rows: {duration:.1f} s, {len(files)} files, {size:.0f} MB, {memory:.0f} MB memory")
        _, memory, duration = watched(lambda: centre_similarities(faces, faces))
        print(f"class centres, {args.rows // 20} classes: {duration:.1f} s, {memory:.0f} MB memory")
    now, before = header_seconds(args.images, args.classes)
    print(f"header, {args.images} images x {args.classes} classes: {now:.1f} s, kernel normalised in each block "
          f"{before:.1f} s ({before / now:.1f} times as long)", flush=True)


if __name__ == "__main__":
    main()
