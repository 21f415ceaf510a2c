"""What both trainings share: the lock of their output, their messages, and the state that --resume continues from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoint import load_strict, read_checkpoint, save_checkpoint
from model.files import only_run
from training import processes
from training.settings import flag
from training.state import load_optimizer, optimizer_tensors, prefixed, without_prefix

# Settings that a resumed run may change; the others would make two runs out of one. Other pictures are found out.
FREE = {
    *("data", "validation", "real", "without", "num_workers", "cache", "encoder", "start_weights", "trunk"),
    *("output", "device", "precision", "resume"),
}


def save_state(
    config: Any,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    facts: Mapping[str, Any],
) -> None:
    """Write OUTPUT/state.safetensors, atomically: all that later epochs depend on."""
    tensors = optimizer_tensors(optimizer, "optimizer.")
    for name, network in networks.items():
        tensors |= prefixed(f"{name}.", network.state_dict())
    run = {"settings": asdict(config), "scaler": scaler.state_dict(), **facts}
    save_checkpoint(state_path(config), tensors, {"system": "dsl-fiqa-training", "run": json.dumps(run)})


def load_state(
    config: Any,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    data: str,
) -> dict[str, Any]:
    """Put everything where the state left off, and return its facts.

    Raises ValueError when there is no state, or when it is of other settings or of other pictures (`data`).
    """
    path = state_path(config)
    if not path.is_file():
        raise ValueError(f"--resume: there is no {path}; leave --resume out to begin, or check --output")
    tensors, metadata = read_checkpoint(path)
    facts = json.loads(metadata["run"])
    now = json.loads(json.dumps(asdict(config)))
    for name, before in facts["settings"].items():
        if name in now and name not in FREE and now[name] != before:
            raise ValueError(f"--resume: {path} was begun with {flag(name)} {before}, not {now[name]}")
    if facts["data"] != data:
        raise ValueError(f"--resume: the pictures are not those that {path} was trained on")
    for name, network in networks.items():
        load_strict(network, without_prefix(f"{name}.", tensors), path)
    load_optimizer(optimizer, "optimizer.", tensors)
    scaler.load_state_dict(facts["scaler"])
    return facts


def state_path(config: Any) -> Path:
    """Where the state of a run lies."""
    return Path(config.output) / "state.safetensors"


@contextmanager
def sole_run(config: Any) -> Iterator[None]:
    """Make the output's folder and hold it; of several processes under torchrun the first does."""
    Path(config.output).mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with only_run(Path(config.output) / "run"):
        yield


def fingerprint(paths: Sequence[str]) -> str:
    """Of the pictures of a run, wherever they lie: of their names and those of their folders."""
    names = "\n".join("/".join(Path(path).parts[-2:]) for path in paths)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def say(text: str) -> None:
    """Progress goes to stderr, from one process; stdout holds the path of the result only."""
    if processes.rank() == 0:
        print(text, file=sys.stderr, flush=True)
