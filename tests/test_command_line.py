"""command_line.py: keep_freed_memory."""

import os
import subprocess
import sys

import pytest

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
