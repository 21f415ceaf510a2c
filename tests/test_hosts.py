"""Trainings by torchrun on two hosts, here two addresses of this machine, end as those on one host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cr_fiqa_parts
import numpy as np
import pytest
from training_parts import ROOT, read_log, run_train, write_faces, write_start

import methods.cr_fiqa.train
from model.checkpoint import read_checkpoint

HOSTS = ("127.0.0.2", "127.0.0.3")


def on_two_hosts(command: Sequence[object]) -> list[subprocess.CompletedProcess[str]]:
    """What a person calls on each of the hosts, at the same time, with one process on each."""
    with socket.socket() as free:
        free.bind((HOSTS[0], 0))
        meeting = f"{HOSTS[0]}:{free.getsockname()[1]}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", meeting]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(rank), "--local-addr", host, *map(str, command)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, host in enumerate(HOSTS)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def arguments(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("hosts")
    files = ["--data-list", write_faces(folder, 12), "--clip-model", write_start(folder, golden)]
    return [*files, "--lr", "1e-4", "--calibration-epoch", 2, "--batch-size", 12, "--epochs", 3, "--checkpoints"]


def test_two_hosts_train_as_one(arguments: list[object], tmp_path: Path) -> None:
    one = run_train([*arguments, tmp_path / "one"])
    two = on_two_hosts(["train.py", "--device", "cpu", "--num-workers", "0", *arguments, tmp_path / "two"])
    assert [one.returncode, *(done.returncode for done in two)] == [0, 0, 0], "".join(done.stderr for done in two)
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    assert [record["epoch"] for record in logs[1]] == [1, 2, 3]
    totals = [[record["total"] for record in log] for log in logs]
    np.testing.assert_allclose(totals[1], totals[0], rtol=0.1)   # batch statistics of 6 and 6 images, not of 12
    assert sorted(done.stdout.count("clib_fiqa.safetensors") for done in two) == [0, 1]   # the first process reports


def test_a_run_of_one_process_goes_on_with_two(arguments: list[object], tmp_path: Path) -> None:
    """Batches, losses and optimisers are those of the whole batch, so a state does not depend on the processes."""
    place = arguments.index("--epochs") + 1
    shorter = [*arguments[:place], 2, *arguments[place + 1 :]]
    assert run_train([*shorter, tmp_path / "run"]).returncode == 0
    before = read_log(tmp_path / "run")
    done = on_two_hosts(["train.py", "--device", "cpu", "--num-workers", "0", *arguments, tmp_path / "run", "--resume"])
    assert [host.returncode for host in done] == [0, 0], done[0].stderr
    whole = run_train([*arguments, tmp_path / "whole"])
    assert whole.returncode == 0
    log = read_log(tmp_path / "run")
    assert log[:2] == before
    assert log[2]["total"] == pytest.approx(read_log(tmp_path / "whole")[2]["total"], rel=0.1)


def test_cr_fiqa_on_two_hosts(tmp_path: Path) -> None:
    """It begins in one process and goes on, in the middle of its first epoch, on two hosts."""
    data = cr_fiqa_parts.write_identities(tmp_path / "data", images=6)
    whole = cr_fiqa_parts.tiny(data, tmp_path / "whole", lr=0.5)
    methods.cr_fiqa.train.train(whole)
    begun = replace(whole, output=str(tmp_path / "run"), save_every_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.cr_fiqa.train, "save_state", stop)   # at the end of the first epoch, before it is saved
        with pytest.raises(KeyboardInterrupt):
            methods.cr_fiqa.train.train(begun)
    assert len(read_checkpoint(tmp_path / "run" / "state.safetensors")[0]["past"]) == 2
    flags = ["--data", data, "--start-weights", data / "start.pth", "--output", tmp_path / "run", "--batch-size", "8"]
    flags += ["--epochs", "2", "--lr", "0.5", "--dropout", "0", "--milestones", "", "--device", "cpu"]
    done = on_two_hosts(["-m", "methods.cr_fiqa.train", *flags, "--num-workers", "0", "--resume"])
    assert [host.returncode for host in done] == [0, 0], "".join(host.stderr for host in done)
    assert sorted(host.stdout for host in done) == ["", f"{tmp_path / 'run' / '6backbone.pth'}\n"]
    logs = [read_log(tmp_path / name) for name in ("whole", "run")]
    assert [record["step"] for record in logs[1]] == [3, 6]
    for one, two in zip(*logs, strict=True):
        assert two["losses"]["identity"] == pytest.approx(one["losses"]["identity"], rel=0.1)


def stop(*_: object) -> None:
    raise KeyboardInterrupt
