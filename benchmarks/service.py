"""The service under load, beside the batch scorer: images a second, waiting times, rejections, memory.

    python benchmarks/service.py ../shared/data/faces/lfw

In each round `inference.py` scores a list of crops, then clients that ask one after the other keep the service busy
with as many crops (closed loop). The machine's own ups and downs then meet both. At last requests arrive at twice the
rate that the service reached (open loop, whatever the answers), for a given time. The service, the batch scorer and the
clients share this machine's cores; processor times are given for each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import positive  # noqa: E402
from faces.listing import list_images  # noqa: E402
from model.cores import available_cores  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402

BOUNDARY = b"face-quality"
START_S = 120
FEW = 16  # images of a run that only measures the start


@dataclass
class Answers:
    """What clients saw."""

    codes: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of the answers 200
    without_retry: int = 0  # refusals without Retry-After


class Connection:
    """One connection to the service, opened when it is needed. As little work as HTTP allows: the cores are shared."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, answers: Answers) -> bytes:
        """The body of the answer, empty where there is none; `answers` gets what happened."""
        start = time.perf_counter()
        try:
            await self.send(request)
            assert self.reader is not None
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(re.findall(rb"content-length: (\d+)", head)[0])
            body = await self.reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            answers.codes[0] += 1
            self.writer = None
            return b""
        code = int(head.split(maxsplit=2)[1])
        answers.codes[code] += 1
        if code == 200:
            answers.seconds.append(time.perf_counter() - start)
        elif b"retry-after" not in head:
            answers.without_retry += 1
        if b"connection: close" in head:
            self.hang_up()
        return body

    async def send(self, request: bytes) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        await self.writer.drain()

    def hang_up(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def request_of(images: Sequence[bytes]) -> bytes:
    """A whole POST /score as bytes."""
    start = b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    parts = [start + image + b"\r\n" for image in images]
    body = b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"
    head = (
        b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=" + BOUNDARY
        + b"\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    return head + body


async def closed_loop(port: int, requests: Sequence[bytes], clients: int) -> Answers:
    """`clients` connections; each asks as soon as its last answer is there."""
    answers, waiting = Answers(), iter(requests)

    async def client() -> None:
        connection = Connection(port)
        for request in waiting:
            await connection.ask(request, answers)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Answers:
    """`rate` requests a second, each at its time, on a free connection or a new one."""
    answers, free, tasks = Answers(), list[Connection](), set[asyncio.Task[None]]()

    async def one(request: bytes) -> None:
        connection = free.pop() if free else Connection(port)
        await connection.ask(request, answers)
        free.append(connection)

    start = time.perf_counter()
    for number, request in enumerate(islice(cycle(requests), int(rate * seconds))):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.add(task := asyncio.create_task(one(request)))
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.gather(*tasks)
    return answers


@contextmanager
def running_service(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """The service as a process: its id and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "service", "--port", str(port), "--weights", args.weights, "--device", "cpu"]
    command += ["--threads", str(args.threads)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not is_open(port):
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.2)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def processor_seconds(pid: int) -> float:
    """Of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def batch_run(listed: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Images a second of inference.py without its start, and its processor seconds with it."""
    command = [sys.executable, str(ROOT / "inference.py"), f"@{listed}", "--weights", args.weights, "--device", "cpu"]
    command += ["--threads", str(args.threads), "--output", str(listed.with_name("scores.csv"))]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    count, seconds = re.findall(r"(\d+) ok in ([\d.]+) s", done.stderr)[0]
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return int(count) / float(seconds), used


def measure(args: argparse.Namespace, listed: Path, requests: Sequence[bytes]) -> list[list[Cell]]:
    """The rows of the table."""
    batch, served, used, ratios, seconds = [], [], [], [], list[float]()
    with running_service(args) as (pid, port):
        asyncio.run(closed_loop(port, requests[:8], args.clients))  # warm
        for _ in range(args.rounds):
            rate, _ = batch_run(listed, args)
            cpu, start = processor_seconds(pid), time.perf_counter()
            answers = asyncio.run(closed_loop(port, requests, args.clients))
            assert set(answers.codes) == {200}, answers.codes
            count = len(requests) * args.images
            batch.append(rate)
            served.append(count / (time.perf_counter() - start))
            used.append((processor_seconds(pid) - cpu) / count)
            ratios.append(served[-1] / rate)
            seconds += answers.seconds
        few = listed.with_name("few.txt")
        few.write_text("".join(listed.read_text().splitlines(keepends=True)[:FEW]))
        count = len(requests) * args.images
        batch_cpu = (batch_run(listed, args)[1] - batch_run(few, args)[1]) / (count - FEW)
        before = resident_megabytes(pid)
        rate = 2 * statistics.median(served) / args.images
        start = time.perf_counter()
        over = asyncio.run(open_loop(port, requests, rate, args.seconds))
        lasted = time.perf_counter() - start
        after = resident_megabytes(pid)
    asked = sum(over.codes.values())
    refused = over.codes[429] + over.codes[503]
    return [
        ["batch scorer, images/s (median)", statistics.median(batch)],
        ["service, images/s (median)", statistics.median(served)],
        ["service / batch scorer (median of the rounds)", statistics.median(ratios)],
        ["batch scorer, processor ms an image", 1000 * batch_cpu],
        ["service, processor ms an image", 1000 * statistics.median(used)],
        [f"{args.clients} clients: median answer, s", statistics.median(seconds)],
        [f"{args.clients} clients: p99, s", float(np.quantile(seconds, 0.99))],
        ["twice the capacity: requests", asked],
        ["… answered, images/s", over.codes[200] * args.images / lasted],
        ["… refused with 429 or 503, %", 100 * refused / asked],
        ["… refused without Retry-After, or failed", over.without_retry + over.codes[0] + over.codes[500]],
        ["… p99 of the answered ones, s", float(np.quantile(over.seconds or [np.nan], 0.99))],
        ["memory before that, MB", before],
        ["memory after that, MB", after],
        [f"load average of this machine ({available_cores()} cores) while this ran", os.getloadavg()[2]],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="folder of aligned crops")
    parser.add_argument("--count", type=positive, default=800, help="images of a round (800)")
    parser.add_argument("--images", type=positive, default=8, help="images of a request (8)")
    parser.add_argument("--clients", type=positive, default=6, help="(6)")
    parser.add_argument("--rounds", type=positive, default=5, help="(5)")
    parser.add_argument("--seconds", type=positive, default=120, help="at twice the capacity (120)")
    parser.add_argument("--threads", type=positive, default=available_cores(), help="of torch (the cores)")
    parser.add_argument("--weights", default="clib-fiqa", help="(clib-fiqa)")
    add_results_option(parser)
    args = parser.parse_args()
    paths = list_images(args.faces)[: args.count]
    contents = [path.read_bytes() for path in paths]
    requests = [request_of(contents[i : i + args.images]) for i in range(0, len(contents), args.images)]
    what = f"Service under load: {args.weights}, {len(paths)} crops, requests of {args.images}, {args.threads} threads"
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "list.txt"
        listed.write_text("".join(f"{path.absolute()}\n" for path in paths))
        rows = measure(args, listed, requests)
    columns = [Column("what"), Column("value", "{:.4g}")]
    Output(args.results, "python benchmarks/service.py FACES").add("service", what, columns, rows)


if __name__ == "__main__":
    main()
