"""Time and memory of label optimisation: a million synthetic images, and the published loop beside ours on 20,000.

    python benchmarks/label_optimization.py                     # all of it
    python benchmarks/label_optimization.py --images 0          # the comparison only

Embeddings have 512 values, identities 357 images (as VGGFace2), 20 clusters each, 10 iterations. The files are written
to a temporary folder: 2 GB for a million images. `cluster` and `optimize` run as commands, in a process each, from
file to file; their memory is the peak of the process, which counts the embeddings that it maps from the disk.

The published loop, written anew from its description: pickles read in each iteration, a partner by `random.choice` and
a cosine for each pair, tuples in a set, sorted, ranked through dictionaries. Both are timed twice: from file to file,
and without reading and writing files. The shorter of three runs of ours counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluation.inputs import read_qualities
from methods.label_optimization import cluster, optimize
from methods.label_optimization.ranks import optimise, sort_into_clusters
from methods.label_optimization.tables import read_clusters

ROOT = Path(__file__).parents[1]
WIDTH, IDENTITY, CLUSTERS, ITERATIONS, EPSILON = 512, 357, 20, 10, 0.001


def write_inputs(folder: Path, images: int) -> None:
    """embeddings.npz and scores.csv: each image is its identity's centre, a place in 16 dimensions, and noise."""
    rng = np.random.default_rng(0)
    names = np.array([f"n{i // IDENTITY:06d}/{i:07d}.jpg" for i in range(images)])
    rows = rng.standard_normal((images, WIDTH), dtype=np.float32)
    basis = rng.standard_normal((16, WIDTH), dtype=np.float32)
    for start in range(0, images, IDENTITY):
        part = rows[start : start + IDENTITY]
        part += rng.standard_normal((len(part), 16), dtype=np.float32) @ basis
        part += rng.standard_normal(WIDTH, dtype=np.float32)
    np.savez(folder / "embeddings.npz", names=names, embeddings=rows)
    scores = rng.random(images)
    with open(folder / "scores.csv", "w") as file:
        file.write("path,status,quality\n")
        file.writelines(f"{name},ok,{score:.8g}\n" for name, score in zip(names.tolist(), scores.tolist(), strict=True))


def arguments(folder: Path) -> tuple[list[str], list[str]]:
    """Of `cluster` and of `optimize`."""
    first = ["--embeddings", str(folder / "embeddings.npz"), "--output", str(folder / "clusters.tsv")]
    second = [*first[:2], "--scores", str(folder / "scores.csv"), "--clusters", str(folder / "clusters.tsv")]
    second += ["--output", str(folder / "optimised.tsv"), "--iterations", str(ITERATIONS), "--epsilon", str(EPSILON)]
    return [*first, "--clusters", str(CLUSTERS)], second


def run_command(name: str, given: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of a core, and peak memory in GB of a command in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, "-m", f"methods.label_optimization.{name}", *given]
    child = os.posix_spawn(sys.executable, command, os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{name} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024**2


def published(folder: Path) -> tuple[float, float]:
    """Seconds of the published loop, and those of them that it spends reading files."""
    began, reading = time.perf_counter(), 0.0
    moved: dict[str, list[float]] = {}
    for _ in range(ITERATIONS):
        opened = time.perf_counter()
        quality, embeddings, clusters = (
            pickle.loads((folder / f"{name}.pkl").read_bytes()) for name in ("scores", "embeddings", "clusters")
        )
        reading += time.perf_counter() - opened
        base = {name: rank for rank, name in enumerate(sorted(quality, key=quality.__getitem__))}
        pairs = set()
        for members in clusters.values():
            for own, names in members.items():
                for name in names:
                    for other in members:
                        if other != own:
                            partner = random.choice(members[other])
                            a, b = embeddings[name], embeddings[partner]
                            cosine = np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
                            pairs.add((name, partner, float(cosine)))
        ranks: dict[str, list[int]] = {}
        for rank, (name, partner, _) in enumerate(sorted(pairs, key=lambda pair: pair[2])):
            worse = name if base[name] < base[partner] else partner
            ranks.setdefault(worse, []).append(rank)
        for name, rank in base.items():
            new = rank + EPSILON * (np.mean(ranks[name]) - rank) if name in ranks else rank
            moved.setdefault(name, []).append(float(new))
    order = sorted(moved, key=lambda name: np.mean(moved[name]))
    dict(zip(order, sorted(quality.values()), strict=True))
    return time.perf_counter() - began, reading


def ours(folder: Path) -> tuple[float, float]:
    """Seconds of ours from file to file, and those of the optimisation alone."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        optimize.main(arguments(folder)[1])
    whole = time.perf_counter() - began
    quality = np.array(list(read_qualities(folder / "scores.csv").values()))
    names, identities, clusters = read_clusters(folder / "clusters.tsv")
    with np.load(folder / "embeddings.npz") as arrays:
        rows = arrays["embeddings"]  # the three tables are in one order
    began = time.perf_counter()
    clustering = sort_into_clusters(names, identities, clusters)
    optimise(quality, rows.__getitem__, clustering, EPSILON, ITERATIONS)
    return whole, time.perf_counter() - began


def compare(folder: Path, images: int) -> None:
    """The published loop and ours on the same images."""
    write_inputs(folder, images)
    with contextlib.redirect_stdout(io.StringIO()):
        cluster.main(arguments(folder)[0])
    write_pickles(folder)
    theirs, reading = published(folder)
    runs = [ours(folder) for _ in range(3)]
    whole, alone = (min(times) for times in zip(*runs, strict=True))
    for what, slow, fast in (("from file to file", theirs, whole), ("without files", theirs - reading, alone)):
        print(f"{images:,} images, {what}: published {slow:.1f} s, ours {fast:.2f} s: {slow / fast:.0f} times as fast")


def write_pickles(folder: Path) -> None:
    """The inputs as the published code takes them."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for name, identity, number in zip(*read_clusters(folder / "clusters.tsv"), strict=True):
        grouped.setdefault(identity, {}).setdefault(number, []).append(name)
    with np.load(folder / "embeddings.npz") as arrays:
        embeddings = dict(zip(arrays["names"].tolist(), arrays["embeddings"], strict=True))
    lines = (folder / "scores.csv").read_text().splitlines()[1:]
    scores = {line.split(",")[0]: float(line.split(",")[2]) for line in lines}
    for name, value in (("scores", scores), ("embeddings", embeddings), ("clusters", grouped)):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value))


def main() -> None:
    """One line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the large run; 0: none (1,000,000)")
    parser.add_argument("--compared", type=int, default=20_000, help="images of the comparison; 0: none (20,000)")
    args = parser.parse_args()
    setting = f"{WIDTH} values, {CLUSTERS} clusters, {ITERATIONS} iterations"
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, {setting}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.compared:
            compare(Path(folder), args.compared)
        if args.images:
            write_inputs(Path(folder), args.images)
            total = 0.0
            for name, given in zip(("cluster", "optimize"), arguments(Path(folder)), strict=True):
                seconds, cores, memory = run_command(name, given)
                total += seconds
                cost = f"{seconds:.0f} s ({cores:.0f} s of a core), peak {memory:.1f} GB"
                print(f"{args.images:,} images: {name} {cost}", flush=True)
            print(f"{args.images:,} images: together {total:.0f} s")


if __name__ == "__main__":
    main()
