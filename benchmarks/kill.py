"""Runs that are killed with SIGKILL at random moments and continued with --resume: is the result that of a quiet run?

    python benchmarks/kill.py --seeds 10 --results results     every job, with 10 seeds
    python benchmarks/kill.py --jobs scoring labels --seeds 5

Each job runs once undisturbed. Then, for each seed, the same command is started and killed, with all processes that it
started, until it ends by itself or was killed --kills times. The moments of the kills are random, and lie between the
first file that the undisturbed run wrote and its end. After each kill a result that is there must be whole, and at the
end the files must be equal byte for byte. With --results the rows of jobs that are not run stay as they were.
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

from command_line import positive  # noqa: E402
from recipes.default_model.reports.results import Column, add_results_option, read_result, write_results  # noqa: E402

EARLY = 0.9  # of the time to the first file: kills may also come a little before it
LOOK = 0.01  # seconds between two looks at the folder of an undisturbed run
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

    def resume_flags(self, folder: Path) -> list[str]:
        """--resume, where it is a right flag."""
        return ["--resume"] if self.resumes and (not self.state or (folder / self.state).is_file()) else []


@dataclass
class Quiet:
    """An undisturbed run: its folder, the seconds until its first file, and until its end."""

    folder: Path
    first: float = 0.0
    seconds: float = 0.0


@dataclass
class Found:
    """What became of the disturbed runs of a job."""

    kills: int = 0
    in_work: int = 0  # kills that left files of an unfinished run
    wrong: list[str] = field(default_factory=list)


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

    write_pictures(data / "faces", 24)
    write_models(data)


FACES = ("../data/faces", "--align", "no", "--device", "cpu", "--workers", "1")
CLIB_FIQA = ("--data-list", "../data/labels.tsv", "--clip-model", "../data/start.safetensors", "--checkpoints", "run")
SMALL_STAGES = ("--epochs", "6", "--calibration-epoch", "3", "--batch-size", "8", "--save-every-steps", "1")
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
        ("train.py", *CLIB_FIQA, *SMALL_TRAINING, *SMALL_STAGES),
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
            "--save-every-steps",
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


def start(job: Job, folder: Path, flags: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """The job's command in a group of processes of its own."""
    first, *rest = job.command
    script = [first] if first == "-m" else [str(ROOT / first)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *script, *rest, *flags]
    with open(folder / "stderr.txt", "ab") as errors:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def run_quietly(job: Job, folder: Path) -> Quiet:
    """Run the job in a new folder without a disturbance."""
    folder.mkdir(parents=True)
    began, quiet = time.perf_counter(), Quiet(folder)
    process = start(job, folder)
    while process.poll() is None:
        time.sleep(LOOK)
        if not quiet.first and (files_of(folder) or process.poll() is not None):
            quiet.first = time.perf_counter() - began
    quiet.seconds = time.perf_counter() - began
    require_end(job, folder, process.returncode)
    return quiet


def files_of(folder: Path) -> list[Path]:
    """The files of a run, without what says nothing of its work."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".lock", "stderr.txt"))]


def require_end(job: Job, folder: Path, code: int) -> None:
    if code not in (0, 1):  # 1: some image could not be used
        raise RuntimeError(f"{job.name} ended with {code}: {(folder / 'stderr.txt').read_text()[-2000:]}")


def survive(job: Job, folder: Path, seed: int, quiet: Quiet, most_kills: int) -> Found:
    """Run the job in a new folder, killing it at random moments.

    Raises RuntimeError when it ends by itself with an error.
    """
    rng, found = random.Random(seed), Found()
    folder.mkdir(parents=True)
    while True:
        process = start(job, folder, job.resume_flags(folder) if found.kills else ())
        moment = rng.uniform(EARLY * quiet.first, quiet.seconds)
        try:
            code = process.wait(None if found.kills == most_kills else moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            found.kills += 1
            found.in_work += bool(files_of(folder))
            found.wrong += [f"half-written {name}" for name in job.results if half_written(name, quiet.folder, folder)]
            continue
        require_end(job, folder, code)
        found.wrong += differences(job, quiet.folder, folder)
        return found


def half_written(name: str, quiet: Path, killed: Path) -> bool:
    """Whether a result is there under its name, and is not that of the undisturbed run."""
    return (killed / name).is_file() and (quiet / name).read_bytes() != (killed / name).read_bytes()


def differences(job: Job, quiet: Path, killed: Path) -> list[str]:
    """The results that are not equal byte for byte, and files that should have gone."""
    wrong = [name for name in job.results if (quiet / name).read_bytes() != (killed / name).read_bytes()]
    return wrong + [path.name for path in killed.rglob("*") if path.name.endswith((".parts", ".partial", ".lock"))]


def disturb(job: Job, folder: Path, seeds: int, most_kills: int) -> Found:
    """All runs of a job, with a line for each."""
    total = Found()
    job.make(folder / "data")
    quiet = run_quietly(job, folder / "quiet")
    for seed in range(seeds):
        found = survive(job, folder / f"seed{seed}", seed, quiet, most_kills)
        said = f"other: {', '.join(found.wrong)}" if found.wrong else "equal"
        print(f"{job.name}, seed {seed}: {found.kills} kills, {found.in_work} in the work, {said}", flush=True)
        total = Found(total.kills + found.kills, total.in_work + found.in_work, total.wrong + found.wrong)
    return total


def write_table(folder: Path, rows: dict[str, list[str | float]], flags: str) -> None:
    """Write kill.json, with the rows of jobs that were measured before and not now."""
    path = folder / "kill.json"
    before = {str(row[0]): row for row in read_result(path).rows} if path.is_file() else {}
    columns = [Column("job"), Column("runs"), Column("kills"), Column("of these in the work"), Column("differences")]
    merged = before | rows
    write_results(
        path,
        "Runs that were killed at random moments and continued",
        f"python benchmarks/kill.py {flags} --results results",
        columns,
        [merged[job.name] for job in JOBS if job.name in merged],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [job.name for job in JOBS]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=", ".join(names))
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="disturbed runs of each job (default 3)")
    parser.add_argument("--kills", type=positive, default=4, metavar="N", help="most kills of one run (default 4)")
    add_results_option(parser)
    args = parser.parse_args(arguments)
    failed = 0
    for job in (job for job in JOBS if job.name in args.jobs):
        with tempfile.TemporaryDirectory() as folder:
            found = disturb(job, Path(folder), args.seeds, args.kills)
        failed += len(found.wrong)
        if args.results:
            row = [job.name, args.seeds, found.kills, found.in_work, len(found.wrong)]
            write_table(args.results, {job.name: row}, f"--seeds {args.seeds} --kills {args.kills}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
