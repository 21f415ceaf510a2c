"""What runs leave on the disk, whatever they train: the state that --resume continues from, and the log.

Both are written atomically, and neither needs unpickling: safetensors and JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import load_strict, read_checkpoint, save_checkpoint
from model.files import only_run, write_text
from training import processes
from training.settings import flag


@contextmanager
def sole_run(folder: str | Path) -> Iterator[None]:
    """Make the folder of a run and hold it, so that no second run writes into it; of several processes the first does.

    Raises BlockingIOError when another run holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if processes.rank() > 0:
        yield
        return
    with only_run(folder):
        yield


def save_state(
    path: Path,
    system: str,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    others: Mapping[str, Tensor | None],
    facts: Mapping[str, Any],
) -> None:
    """Write what later epochs depend on. The key of a tensor begins with the name of its network or optimiser; of
    `others` those that are None are left out. `facts` must be JSON, and hold the `settings` and a hash `data`."""
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        tensors |= prefixed(f"{name}.", network.state_dict())
    for name, optimizer in optimizers.items():
        tensors |= optimizer_tensors(optimizer, f"{name}.")
    tensors |= {key: tensor for key, tensor in others.items() if tensor is not None}
    save_checkpoint(path, tensors, {"system": f"{system}-training", "run": json.dumps(facts)})


def read_state(path: Path, folder_flag: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of `save_state`. Raises ValueError, naming the flag of the folder, when there are none."""
    if not path.is_file():
        raise ValueError(f"--resume: there is no {path}; leave --resume out to begin, or check {folder_flag}")
    tensors, metadata = read_checkpoint(path)
    return tensors, json.loads(metadata["run"])


def require_same_settings(path: Path, before: Mapping[str, Any], settings: Any, free: Collection[str]) -> None:
    """Raise ValueError, naming the flag, when the dataclass `settings` differs from those `before` in a field that is
    not in `free`. Settings that only one of them has do not count."""
    now = json.loads(json.dumps(asdict(settings)))
    for name in now.keys() & before.keys() - free:
        if now[name] != before[name]:
            asked = f"{flag(name)} {before[name]}"
            raise ValueError(f"--resume: {path} was begun with {asked}, not {now[name]}; give {asked}")


def restore(
    path: Path,
    tensors: Mapping[str, Tensor],
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Give networks and optimisers the tensors that `save_state` took. Raises CheckpointError when they do not fit."""
    for name, network in networks.items():
        load_strict(network, without_prefix(f"{name}.", tensors), path)
    for name, optimizer in optimizers.items():
        load_optimizer(optimizer, f"{name}.", tensors)


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
