"""Time and memory of `evaluate.py edc` on a large synthetic set, from the files to the report.

    python benchmarks/edc.py                                  10 million pairs, 1 million images of 512 float32
    python benchmarks/edc.py --images 20000 --pairs 200000    a small one

The files are made first and not counted. Peak memory includes the pages of the memory-mapped embeddings.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
IMAGES_PER_IDENTITY = 10
CHUNK = 10_000


def make_embeddings(folder: Path, names: list[str], dimension: int, rng: np.random.Generator) -> None:
    """Unit-scale noise around a centre for each identity, stored uncompressed."""
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, (len(names), dimension))
    for start in range(0, len(names), CHUNK):
        part = rows[start : start + CHUNK]
        centres = rng.standard_normal((-(-len(part) // IMAGES_PER_IDENTITY), dimension), np.float32)
        part[:] = np.repeat(centres, IMAGES_PER_IDENTITY, axis=0)[: len(part)]
        part += 2 * rng.standard_normal(part.shape, np.float32)
    np.savez(folder / "embeddings.npz", names=np.array(names), embeddings=rows)
    (folder / "rows.npy").unlink()


def make_pairs(folder: Path, names: list[str], count: int, rng: np.random.Generator) -> None:
    """Half of the pairs mated; in a random order."""
    first = rng.integers(0, len(names), count)
    mated = rng.random(count) < 0.5
    mate = first // IMAGES_PER_IDENTITY * IMAGES_PER_IDENTITY + rng.integers(0, IMAGES_PER_IDENTITY, count)
    other = (first + rng.integers(IMAGES_PER_IDENTITY, len(names) - IMAGES_PER_IDENTITY, count)) % len(names)
    second = np.where(mated, mate, other)
    with (folder / "pairs.tsv").open("w") as file:
        file.write("path_a\tpath_b\tsame\n")
        for start in range(0, count, CHUNK):
            part = slice(start, start + CHUNK)
            rows = zip(first[part].tolist(), second[part].tolist(), mated[part].tolist(), strict=True)
            file.writelines(f"{names[a]}\t{names[b]}\t{same:d}\n" for a, b, same in rows)


def make_files(folder: Path, images: int, pairs: int, dimension: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i // IMAGES_PER_IDENTITY:06d}/{i % IMAGES_PER_IDENTITY}.jpg" for i in range(images)]
    make_embeddings(folder, names, dimension, rng)
    make_pairs(folder, names, pairs, rng)
    scores = "".join(f"{name},{quality:.6f}\n" for name, quality in zip(names, rng.random(images), strict=True))
    (folder / "scores.csv").write_text("path,quality\n" + scores)


def measure(folder: Path) -> str:
    """Run the command on the files and say what it took."""
    command = [sys.executable, str(ROOT / "evaluate.py"), "edc", "--pairs", str(folder / "pairs.tsv")]
    command += ["--scores", f"random={folder / 'scores.csv'}", "--embeddings", f"fr={folder / 'embeddings.npz'}"]
    command += ["--output", str(folder / "out"), "--fmr", "1e-3", "--limits", "0.3", "--bootstrap", "0"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    return f"{seconds:.1f} s ({cpu:.1f} s of CPU), peak memory {memory:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="keep the files here, and take them from here when they are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "scores.csv").exists():
            make_files(folder, args.images, args.pairs, args.dimension)
        print(f"{args.pairs:,} pairs, {args.images:,} images x {args.dimension} float32: {measure(folder)}")


if __name__ == "__main__":
    main()
