"""What the command lines of the scripts share: types of arguments, the process's memory, and how a run ends."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import signal
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.files import printable

FAILING_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
THREADS_HELP = """CPU threads of each operation (default: OMP_NUM_THREADS, else the number of cores); beside other work
    on the same cores give 1"""

MOST_SHARDS = 100_000
CHECKPOINT_HELP = """ray: keep finished batches in a folder that all hosts see, so that --resume does not compute them
    again"""
FILE_SIZE_HELP = "megabytes of the largest image file that is read, a larger one is too_large (default: 200)"


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"a whole number was expected, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if natural(text) == 0:
        raise ArgumentTypeError("at least 1 was expected")
    return int(text)


def share(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ArgumentTypeError(f"a number above 0 and below 1 was expected, not {text!r}")
    return value


def shard(text: str) -> tuple[int, int]:
    """`2/8`, the second of eight parts of the work."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= MOST_SHARDS):
        raise ArgumentTypeError(f"I/N was expected, such as 2/8 for the second of 8 shards, not {text!r}")
    return int(number), int(count)


def megabytes(text: str) -> int:
    """A number of megabytes above 0, in bytes."""
    try:
        size = float(text) * 1e6
    except ValueError:
        size = 0
    if not 1 <= size < 1e15:
        raise ArgumentTypeError(f"a number of megabytes was expected, not {text!r}")
    return int(size)


def channels(text: str) -> tuple[float, float, float]:
    """One number for each channel, or one for all."""
    values = [float(part) for part in text.split(",")]
    if len(values) not in (1, 3):
        raise ArgumentTypeError(f"R,G,B was expected, not {text!r}")
    red, green, blue = values * (3 // len(values))
    return red, green, blue


def add_machine_flags(add: Callable[..., Any]) -> None:
    """The flags of a run over several machines: a cluster (`faces.cluster.cluster_of` reads these), or shards."""
    add("--engine", choices=("local", "ray"), default="local", help="ray: over many hosts (docs/scale.md)")
    add("--address", metavar="ADDRESS", help="ray: local (default: started here), auto, or a running one, HOST:PORT")
    add("--actors", type=positive, metavar="N", help="ray: processes that hold the network (default: as many as fit)")
    add("--checkpoint", type=Path, metavar="FOLDER", help=CHECKPOINT_HELP)
    shard_help = "do the I-th of N parts of the work, each on a machine of its own; --merge N then makes the output"
    merge_help = "make the output of N finished shards: the same command with --merge N in place of --shard I/N"
    add("--shard", type=shard, metavar="I/N", help=shard_help)
    add("--merge", type=positive, default=0, metavar="N", help=merge_help)


def exit_code(run: Callable[[], int], stopped: str, hint: Callable[[BaseException], str] = lambda error: "") -> int:
    """What `run` returns, or the exit code of the error that ended it; the error is one line on stderr.

    All scripts share this mapping. 0: done. 1: some rows failed, or the run failed (a diverged training, a device, a
    full disk, an image that vanished). 2: the call was wrong. 130: Ctrl-C, and 143: SIGTERM, which both say `stopped`.
    `hint` adds to the line what the user can do next.
    """
    try:
        with terminable():
            return run()
    except KeyboardInterrupt as error:
        print(printable(f"{stopped}{hint(error)}"), file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        print(printable(f"error: {message_of(error)}{hint(error)}"), file=sys.stderr)
        return code_of(error)


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers and containers stop a run. It ends as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise Terminated in the block, unless the process already has a handler of its own."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    raise Terminated


def training_exit_code(train: Callable[[], Path], saved: str) -> int:
    """`exit_code` of a training, whose first process prints the path that `train` returns. `saved` is what --resume
    continues after."""
    from training import processes  # here, as most commands train nothing

    def run() -> int:
        keep_freed_memory()
        try:
            path = train()
            if processes.rank() == 0:
                print(path)
        finally:
            processes.stop()
        return 0

    return processes.end(exit_code(run, f"stopped; the same command with --resume continues after the last {saved}"))


def code_of(error: BaseException) -> int:
    """1 for an error in the middle of a run, 2 for an error of the call."""
    if isinstance(error, OSError):
        return 1 if error.errno in FAILING_DISK else 2
    return 1 if isinstance(error, RuntimeError | MemoryError) else 2


def message_of(error: BaseException) -> str:
    """The error in a sentence; one of the operating system begins with the file."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | os.PathLike):
        return f"{os.fspath(error.filename)}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


def let_threads_sleep() -> None:
    """Let OpenMP threads sleep while they wait for each other. Call it before torch is imported.

    By default they spin. Beside other work, a spinning thread holds the core that the thread it waits for needs: two
    threads then take several times the time of one (docs/inference.md, "Threads"). A value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def set_threads(count: int) -> None:
    """Threads of each operation of torch and OpenCV in this process."""
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for its next tensors, until it ends.

    glibc gives every block above 32 MB back to the kernel, which clears its pages anew for the next tensor of the same
    size: a tenth of the time of a CPU's batch (docs/inference.md). For scripts, not libraries: it holds for the whole
    process, whose peak may grow by a fifth. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
