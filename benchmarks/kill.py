"""Runs that are killed with SIGKILL at random moments and continued with --resume: is the result that of a quiet run?

    python benchmarks/kill.py --seeds 20                     every job, with 20 seeds
    python benchmarks/kill.py --jobs scoring labels --seeds 5

Each job runs once undisturbed. Then, for each seed, the same command is started and killed, with all processes that it
started, until it ends by itself; the files that it leaves must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

MOST_KILLS = 12  # of one run; then it may come to its end
SMALL_TRAINING = ("--device", "cpu", "--num-workers", "0")


@dataclass(frozen=True)
class Job:
    """`command` runs in a folder of its own, where `../data` is what `make` made. `results` are the files that count;
    `state` is what must be there before --resume is a right flag, if anything."""

    name: str
    make: Callable[[Path], None]
    command: Sequence[str]
    results: Sequence[str]
    state: str = ""
    resumes: bool = True


def make_faces(data: Path) -> None:
    """Aligned pictures of three identities, and a tiny FR model."""
    import torch
    from cr_fiqa_parts import tiny_network
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(90):
        folder = data / "faces" / f"id{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (data / "faces" / "id0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    torch.save(tiny_network().state_dict(), data / "fr.pth")


def make_training(data: Path) -> None:
    """A tiny CLIP, and pictures with a label table."""
    from training_parts import write_faces, write_start

    data.mkdir()
    write_start(data, ROOT / "tests" / "golden")
    write_faces(data, 24)


def make_identities(data: Path) -> None:
    """Folders of identities and a tiny IResNet."""
    from cr_fiqa_parts import write_identities

    write_identities(data)


def make_scores(data: Path) -> None:
    """Scores, embeddings and clusters of 400 images."""
    data.mkdir()
    rng = np.random.default_rng(0)
    names = [f"id{number % 10}/{number}.jpg" for number in range(400)]
    rows = [f"{name},ok,{value:.6f}\n" for name, value in zip(names, rng.random(400), strict=True)]
    (data / "scores.csv").write_text("path,status,quality\n" + "".join(rows))
    np.savez(data / "embeddings.npz", names=np.array(names), embeddings=rng.normal(size=(400, 16)).astype(np.float32))
    clusters = "".join(f"{name}\t{name.split('/')[0]}\t{number % 4}\n" for number, name in enumerate(names))
    (data / "clusters.tsv").write_text("path\tidentity\tcluster\n" + clusters)


def make_diffusion(data: Path) -> None:
    """A tiny diffusion model, a tiny FR model and pictures."""
    from diffiqa_parts import write_models, write_pictures

    write_pictures(data / "faces", 40)
    write_models(data)


FACES = ("../data/faces", "--align", "no", "--device", "cpu", "--workers", "1")
CLIB_FIQA = ("--data-list", "../data/labels.tsv", "--clip-model", "../data/start.safetensors", "--checkpoints", "run")
JOBS = [
    Job("scoring", make_faces, ("inference.py", *FACES, "--batch-size", "4", "--output", "out.csv"), ["out.csv"]),
    Job(
        "labels",
        make_faces,
        (
            "generate_labels.py",
            "--data",
            "../data/faces",
            "--output",
            "out.tsv",
            "--fr",
            "../data/fr.pth",
            "--device",
            "cpu",
            "--batch-size",
            "2",
            "--workers",
            "1",
        ),
        ["out.tsv", "out.tsv.skipped.tsv"],
    ),
    Job(
        "embedding",
        make_faces,
        ("evaluate.py", "embed", *FACES, "--fr", "../data/fr.pth", "--batch-size", "1", "--output", "out.npz"),
        ["out.npz", "out.npz.skipped.tsv"],
    ),
    Job(
        "clib-fiqa",
        make_training,
        ("train.py", *CLIB_FIQA, *SMALL_TRAINING, "--epochs", "6", "--calibration-epoch", "3", "--batch-size", "8"),
        ["run/clib_fiqa.safetensors", "run/mlp.safetensors", "run/confidence.tsv"],
        "run/state.safetensors",
    ),
    Job(
        "cr-fiqa",
        make_identities,
        (
            "-m",
            "methods.cr_fiqa.train",
            "--data",
            "../data",
            "--start-weights",
            "../data/start.pth",
            "--output",
            "run",
            *SMALL_TRAINING,
            "--epochs",
            "6",
            "--batch-size",
            "8",
            "--save-every",
            "1",
            "--milestones",
            "",
        ),
        ["run/12backbone.pth", "run/12header.pth"],
        "run/state.safetensors",
    ),
    Job(
        "label-optimization",
        make_scores,
        (
            "-m",
            "methods.label_optimization.optimize",
            "--scores",
            "../data/scores.csv",
            "--embeddings",
            "../data/embeddings.npz",
            "--clusters",
            "../data/clusters.tsv",
            "--output",
            "out.tsv",
            "--iterations",
            "40",
        ),
        ["out.tsv"],
        resumes=False,
    ),
    Job(
        "diffiqa",
        make_diffusion,
        (
            "-m",
            "methods.diffiqa.score",
            "../data/faces",
            "--align",
            "no",
            "--weights",
            "../data/diffusion.safetensors",
            "--fr",
            "../data/fr.safetensors",
            "--output",
            "out.csv",
            "--repeats",
            "2",
            "--batch-size",
            "1",
            "--device",
            "cpu",
        ),
        ["out.csv"],
    ),
]


def start(job: Job, folder: Path, resume: bool) -> subprocess.Popen[bytes]:
    """The job's command in a group of processes of its own."""
    first, *rest = job.command
    script = [first] if first == "-m" else [str(ROOT / first)]
    flags = ["--resume"] if resume and job.resumes and (not job.state or (folder / job.state).is_file()) else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *script, *rest, *flags]
    with open(folder / "stderr.txt", "ab") as errors:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def survive(job: Job, folder: Path, seed: int, seconds: float, most_kills: int = MOST_KILLS) -> int:
    """Run the job in a new folder, killing it after random times below `seconds`; the number of kills.

    Raises RuntimeError when it ends by itself with an error.
    """
    rng, kills = random.Random(seed), 0
    folder.mkdir(parents=True)
    while True:
        process = start(job, folder, resume=kills > 0)
        try:
            code = process.wait(None if kills == most_kills else rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        if code not in (0, 1):  # 1: some image could not be used
            raise RuntimeError(f"{job.name} ended with {code}: {(folder / 'stderr.txt').read_text()[-2000:]}")
        return kills


def differences(job: Job, quiet: Path, killed: Path) -> list[str]:
    """The results that are not equal byte for byte, and files that should have gone."""
    wrong = [name for name in job.results if (quiet / name).read_bytes() != (killed / name).read_bytes()]
    return wrong + [path.name for path in killed.iterdir() if path.name.endswith((".parts", ".lock"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [job.name for job in JOBS]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=", ".join(names))
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="disturbed runs of each job (default 3)")
    args = parser.parse_args(arguments)
    failed = 0
    for job in (job for job in JOBS if job.name in args.jobs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job.make(folder / "data")
            began = time.perf_counter()
            survive(job, folder / "quiet", 0, 0, most_kills=0)
            seconds = time.perf_counter() - began
            for seed in range(args.seeds):
                kills = survive(job, folder / f"seed{seed}", seed, seconds)
                wrong = differences(job, folder / "quiet", folder / f"seed{seed}")
                failed += bool(wrong)
                print(f"{job.name}, seed {seed}: {kills} kills, {'other: ' + ', '.join(wrong) if wrong else 'equal'}")
                sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
