"""command_line.py: exit codes and keep_freed_memory."""

import errno
import os
import subprocess
import sys

import pytest

from command_line import exit_code

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
