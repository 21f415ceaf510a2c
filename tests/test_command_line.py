"""command_line.py: exit codes and keep_freed_memory."""

import errno
import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from command_line import exit_code, megabytes, share
from faces.reader import MAX_BYTES

ROOT = Path(__file__).parents[1]
FOLDERS = ("model", "faces", "labels", "bundle", "scoring", "training", "evaluation", "methods", "service", "recipes")

FAULTS = """
import resource, torch
from command_line import keep_freed_memory
{call}
(torch.ones(2**25) + 1).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    (torch.ones(2**25) + 1).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


AFFINITY = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.cpu_count = lambda: 64
import evaluate, generate_labels
from faces import align
align.align_folder = lambda folder, output, alignment, workers, suffix: print(workers) or {}
align.main(["photographs", "--output", "crops"])
print(generate_labels.parse(["--data", "faces", "--output", "labels.tsv"]).workers)
for command in (["embed", "x", "--fr", "dlib"], ["baseline", "sobel", "x"], ["prepare", "x"]):
    print(evaluate.parse([*command, "--output", "y"]).workers)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_of_one_core_starts_one_worker() -> None:
    """Under taskset or Slurm, on a machine with 64 cores."""
    done = subprocess.run([sys.executable, "-c", AFFINITY], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["1"] * 5


def test_the_cores_are_counted_in_one_place() -> None:
    sources = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    counting = [path for path in (*sources, *ROOT.glob("*.py")) if "cpu_count" in path.read_text(encoding="utf-8")]
    assert counting == [ROOT / "model" / "cores.py"]


def page_faults(call: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_tensors_use_the_memory_of_those_before_them() -> None:
    assert page_faults("keep_freed_memory()") < page_faults("pass") / 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("wrong"), 2, "error: wrong (hint)"),
        (FileNotFoundError("nowhere"), 2, "error: nowhere (hint)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), 2, "error: a.csv: no such file (hint)"),
        (OSError(errno.ENOSPC, "No space", "a.csv"), 1, "error: a.csv: no space (hint)"),
        (OSError(errno.ENOSPC, "no space"), 1, f"error: [Errno {errno.ENOSPC}] no space (hint)"),
        (RuntimeError("out of memory"), 1, "error: out of memory (hint)"),
        (KeyboardInterrupt(), 130, "stopped (hint)"),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        raise error

    assert exit_code(run, "stopped", lambda caught: " (hint)" if caught is error else "") == code
    assert capsys.readouterr().err == f"{message}\n"
    assert exit_code(run, "stopped") == code
    assert exit_code(lambda: 1, "stopped") == 1


STOPPED = """
import sys, time
from command_line import exit_code

def run():
    print("ready", flush=True)
    time.sleep(60)

sys.exit(exit_code(run, "stopped; --resume goes on"))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_what_resume_does(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[1] == "stopped; --resume goes on\n"
    assert process.returncode == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise ValueError("no \x1b]0;title\x07 in\nnames")

    assert exit_code(run, "stopped") == 2
    assert capsys.readouterr().err == "error: no \\x1b]0;title\\x07 in\\nnames\n"


def test_megabytes() -> None:
    assert megabytes("200") == MAX_BYTES
    assert megabytes("0.5") == 500_000
    for text in ("0", "-1", "nan", "inf", "x", ""):
        with pytest.raises(ArgumentTypeError, match="number of megabytes"):
            megabytes(text)


def test_a_share_lies_between_0_and_1() -> None:
    assert share("0.25") == 0.25
    for text in ("0", "1", "-0.5", "nan", "a fifth"):
        with pytest.raises(ArgumentTypeError, match=f"above 0 and below 1 was expected, not '{text}'"):
            share(text)
