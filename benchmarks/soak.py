"""A long run of the batch scorer, and one of the service, while files vanish, clients hang up and processes are killed.

    python benchmarks/soak.py batch --folder runs/soak                     200,000 images through inference.py
    python benchmarks/soak.py service --folder runs/soak                   200,000 images through the service
    python benchmarks/soak.py table --folder runs/soak --results results   the table of both

Each half may be stopped at any time (Ctrl-C, a kill) and goes on when it is called again with the same flags. What it
saw is in FOLDER/batch.jsonl and FOLDER/service.jsonl, a line for each look at the process.

Batch: one image of a thousand is removed shortly before it is read, and the reading process is killed at up to ten
random rows, at most once every two seconds; the run then ends and goes on with --resume. At the end there must be one
row for each image in its order, and only images that were removed may be missing. Service: clients ask for eight images
at a time, one request of a hundred is given up in its middle and asked again, and the service itself is killed at a
tenth, a fifth and three tenths of the way. Each image must get one score. The rates are those of the first and of the
last fifth, beside processor milliseconds an image, which other work on the same cores hardly changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import children_of, make_crops, memory_of, tree_seconds  # noqa: E402
from benchmarks.service import Answers, Connection, request_of, running_service  # noqa: E402
from command_line import positive  # noqa: E402
from evaluation.scores import read_scores  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402

EVERY = 2.0  # seconds between two looks
VANISHING = 1000  # one image of so many
AHEAD = (200, 3000)  # rows before a removed image is reached
KILLS = 10  # of the reading process, in a batch run
SERVICE_KILLS = (0.1, 0.2, 0.3)  # of the way
HANG_UPS = 100  # one request of so many
IMAGES = 8  # of a request
CLIENTS = 4


@dataclass
class Look:
    """One look at the process that scores: which start of it, seconds since the start of the half (without breaks),
    images that are done, its processor seconds and megabytes."""

    start: int
    seconds: float
    done: int
    processor: float
    memory: float


class Looks:
    """The looks of a half, kept in a file, from which a half that was stopped goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all = [Look(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
        last = self.all[-1] if self.all else Look(-1, 0.0, 0, 0.0, 0.0)
        self.start, self.done, self.began = last.start, last.done, time.perf_counter() - last.seconds

    def add(self, pid: int, done: int) -> None:
        look = Look(self.start, time.perf_counter() - self.began, done, tree_seconds(pid), memory_of(pid))
        self.all.append(look)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(look)) + "\n")


def crops_of(folder: Path, count: int) -> list[str]:
    """The pictures of a half, made once; hard links to some hundred of them."""
    listed = folder / "list.txt"
    if not listed.is_file():
        (folder / "crops").mkdir(parents=True, exist_ok=True)
        paths = make_crops(folder / "crops", count)
        listed.write_text("\n".join(paths) + "\n")
    paths = listed.read_text().splitlines()
    if len(paths) != count:
        raise SystemExit(f"{folder} was begun with {len(paths)} images; give --images {len(paths)}, or a new --folder")
    return paths


def batch(folder: Path, count: int) -> None:
    """The batch scorer, until its table is there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, looks, output = crops_of(folder, count), Looks(folder / "batch.jsonl"), folder / "scores.csv"
    doomed = sorted(random.Random(1).sample(range(count), count // VANISHING))
    kills = sorted(random.Random(2).sample(range(count), KILLS))
    command = [sys.executable, str(ROOT / "inference.py"), f"@{folder / 'list.txt'}", "--output", str(output)]
    command += ["--align", "no", "--device", "cpu", "--threads", "1", "--workers", "1", "--resume"]
    while not output.is_file():
        looks.start += 1
        killed = False
        with open(folder / "stderr.txt", "ab") as errors, running(command, errors) as process:
            for done in rows_of_journal(Path(f"{output}.partial"), process):
                looks.add(process.pid, done)
                for index in doomed:
                    if done + AHEAD[0] < index < done + AHEAD[1]:
                        Path(paths[index]).unlink(missing_ok=True)
                due = sum(kill < done for kill in kills)
                if due > noted(folder / "kills.txt") and (readers := children_of(process.pid)):
                    os.kill(readers[-1], signal.SIGKILL)
                    note(folder / "kills.txt", done)
                    killed = True
        if not output.is_file() and not killed:
            raise SystemExit(f"inference.py ended with {process.returncode}: see {folder / 'stderr.txt'}")
    check_table(output, paths)


@contextlib.contextmanager
def running(command: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which ends with the block at the latest."""
    with subprocess.Popen(command, stderr=errors) as process:
        try:
            yield process
        finally:
            process.terminate()


def rows_of_journal(journal: Path, process: subprocess.Popen[bytes]) -> Iterator[int]:
    """How many rows the journal of a running process holds, every few seconds."""
    rows, end = 0, 0
    while process.poll() is None:
        time.sleep(EVERY)
        try:
            with open(journal, "rb") as file:
                file.seek(end)
                new = file.read()
        except FileNotFoundError:  # it has not begun, or has just finished
            continue
        rows, end = rows + new.count(b"\n"), end + len(new)
        if rows > 1 and process.poll() is None:
            yield rows - 1


def check_table(output: Path, paths: Sequence[str]) -> None:
    """Raise AssertionError unless the table has a row for each path, in order, and only removed ones failed."""
    found = read_scores(output)
    assert list(found) == list(paths), "a row is lost, doubled or in another place"
    wrong = [path for path, quality in found.items() if (quality != quality) == Path(path).exists()]
    assert not wrong, f"{len(wrong)} rows have the wrong status, as that of {wrong[0]}"


def service(folder: Path, count: int) -> None:
    """The service, until it has scored every image."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, looks = crops_of(folder, count), Looks(folder / "service.jsonl")
    begun = max(0, looks.done - CLIENTS * IMAGES)  # an earlier call was stopped with so many in flight at most
    queue = [range(start, min(start + IMAGES, count)) for start in range(begun, count, IMAGES)][::-1]
    kills = [share * count for share in SERVICE_KILLS if share * count > begun]
    scored: Counter[int] = Counter()
    while len(scored) < count - begun:
        looks.start += 1
        with running_service(argparse.Namespace(weights="clib-fiqa", threads=1)) as (pid, port):
            asyncio.run(ask_for_all(paths, queue, scored, begun, looks, pid, port, kills.pop(0) if kills else None))
    assert sorted(scored) == list(range(begun, count)), "an image has no score"
    assert set(scored.values()) == {1}, "an image was counted twice"


async def ask_for_all(
    paths: Sequence[str],
    queue: list[range],
    scored: Counter[int],
    begun: int,
    looks: Looks,
    pid: int,
    port: int,
    kill_at: float | None,
) -> None:
    """Ask for the images of the queue until it is empty, or until the service is killed, when so many images are done.
    A request whose answer is not whole goes back into the queue."""
    rng, killed, folder = random.Random(looks.start), False, looks.path.parent

    async def client() -> None:
        connection, answers = Connection(port), Answers()
        while queue and not killed:
            rows = queue.pop()
            request = request_of([Path(paths[row]).read_bytes() for row in rows])
            if rng.randrange(HANG_UPS) == 0:
                await give_up(connection, request[: rng.randrange(len(request))])
                note(folder / "hang_ups.txt", rows[0])
            body = await connection.ask(request, answers)
            results = json.loads(body).get("results", []) if body else []
            if len(results) == len(rows) and all(result["status"] == "ok" for result in results):
                scored.update(rows)
            else:
                queue.append(rows)
                await asyncio.sleep(0.1)
        connection.hang_up()

    async def look() -> None:
        nonlocal killed
        while not killed:
            await asyncio.sleep(EVERY)
            looks.add(pid, begun + len(scored))
            if kill_at is not None and begun + len(scored) >= kill_at:
                os.kill(pid, signal.SIGKILL)
                note(folder / "kills.txt", begun + len(scored))
                killed = True

    looking = asyncio.create_task(look())
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    looking.cancel()
    if not killed:
        looks.add(pid, begun + len(scored))


async def give_up(connection: Connection, beginning: bytes) -> None:
    try:
        await connection.send(beginning)
    except OSError:  # the service is gone
        return
    finally:
        connection.hang_up()


def note(path: Path, done: int) -> None:
    """A line for a fault, with the images that were done."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{done}\n")


def noted(path: Path) -> int:
    """How many faults there were."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def summary(looks: Sequence[Look], count: int) -> list[float | None]:
    """Images, hours, images a second and processor ms an image in the first and in the last fifth, megabytes after the
    first fifth of the longest stretch without a start, at its end, and at most. What is too short is None."""
    steps = [(a, b) for a, b in pairwise(looks) if a.start == b.start and b.done > a.done]
    rates: list[float | None] = []
    costs: list[float | None] = []
    for part in ([step for step in steps if step[1].done <= count / 5],
                 [step for step in steps if step[0].done >= 0.8 * count]):  # fmt: skip
        images = sum(b.done - a.done for a, b in part)
        rates.append(images / sum(b.seconds - a.seconds for a, b in part) if part else None)
        costs.append(1000 * sum(b.processor - a.processor for a, b in part) / images if part else None)
    lengths = Counter(look.start for look in looks)
    longest = [look for look in looks if look.start == lengths.most_common(1)[0][0]]
    after = next(look for look in longest if look.done - longest[0].done >= (longest[-1].done - longest[0].done) / 5)
    memory = after.memory, longest[-1].memory, max(look.memory for look in looks)
    return [float(looks[-1].done), looks[-1].seconds / 3600, *rates, *costs, *memory]


def table(folder: Path, output: Output) -> None:
    """The table of the halves that are there."""
    names = ["images", "hours", "images/s, first fifth", "images/s, last fifth", "processor ms an image, first fifth",
             "processor ms an image, last fifth", "MB after a fifth of the longest stretch", "MB at its end",
             "MB at most"]  # fmt: skip
    halves: dict[str, list[float | None]] = {}
    for half in ("batch", "service"):
        looks = Looks(folder / half / f"{half}.jsonl").all
        halves[half] = summary(looks, looks[-1].done) if looks else [None] * len(names)
    rows: list[list[Cell]] = [list(row) for row in zip(names, halves["batch"], halves["service"], strict=True)]
    counts = halves["batch"][0], halves["service"][0]
    rows[0][1:] = [None if count is None else f"{count:,.0f}" for count in counts]

    listed = folder / "batch" / "list.txt"
    gone = sum(not Path(path).exists() for path in listed.read_text().splitlines()) if listed.is_file() else 0
    kills = [noted(folder / half / "kills.txt") for half in halves]
    rows += [["images that vanished", gone, None], ["killed reading processes, killed services", *kills]]
    rows.append(["requests given up", None, noted(folder / "service" / "hang_ups.txt")])
    rows.append(["rows lost or doubled", *(0 if halves[half][0] else None for half in halves)])
    columns = [Column("what"), Column("batch scorer", "{:.3g}"), Column("service", "{:.3g}")]
    output.add("soak", "Long runs with faults", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("batch", "service", "table"), help="which half to run, or the table of both")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak", help="of what it keeps (runs/soak)")
    parser.add_argument("--images", type=positive, default=200_000, help="of the half (200000)")
    add_results_option(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended too
    if args.half == "table":
        table(args.folder, Output(args.results, "python benchmarks/soak.py table", ["clib-fiqa"]))
    else:
        (batch if args.half == "batch" else service)(args.folder / args.half, args.images)


if __name__ == "__main__":
    main()
