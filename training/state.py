"""What runs leave on the disk, whatever they train: the tensors of optimisers, logs and texts, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.files import write_text


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The moments of an optimiser, as `{prefix}{index of the weight}.{name}`."""
    return {
        place + name: moment
        for place, _, state in _moments(optimizer, prefix)
        for name, moment in state.items()
        if moment is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `optimizer_tensors` took; learning rates and the like stay its own."""
    moments = {}
    for index, (place, weight, _) in enumerate(_moments(optimizer, prefix)):
        saved = without_prefix(place, tensors)  # in the weight's own memory layout, as the optimiser made it
        moments[index] = {key: value if value.dim() == 0 else _like(weight, value) for key, value in saved.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add the epoch's line to a log; lines of this epoch and later ones, left by an earlier attempt, go."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["epoch"] < record["epoch"]]
    write_text(path, "\n".join([*kept, json.dumps(record), ""]))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer keys."""
    return {prefix + key: value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose keys begin with the prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """(prefix in the file, weight, the optimiser's tensors of it) for each weight, in the optimiser's order."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, weight in enumerate(weights):
        yield f"{prefix}{index}.", weight, optimizer.state.get(weight, {})


def _like(weight: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(weight, requires_grad=False).copy_(value)
