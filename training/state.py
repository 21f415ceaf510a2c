"""What runs leave on the disk, whatever they train: the state that --resume continues from, and the log.

Both are written atomically, and neither needs unpickling: safetensors and JSON lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointError, load_strict, read_checkpoint, save_checkpoint, with_prefix
from model.files import only_run, parse_json, remove_leftovers, write_text
from training import processes
from training.settings import flag, recorded

# Of what trainings write into their folder; it may be the folder of other outputs too.
OUTPUTS = r".+\.(safetensors|pth)|log\.jsonl|confidence\.tsv|\d+classes\.txt"


@contextmanager
def sole_run(folder: str | Path) -> Iterator[None]:
    """Make the folder of a run and hold it, so that no second run writes into it; of several processes the first does.
    Temporary files that a killed run left in it are removed.

    Raises BlockingIOError when another run holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if processes.rank() > 0:
        yield
        return
    with only_run(folder):
        remove_leftovers(Path(folder), OUTPUTS)
        yield


@dataclass(frozen=True)
class RunState:
    """What the state of any run holds, and which run it is. The keys of its tensors begin with the name of their
    network or optimiser."""

    path: Path
    system: str
    settings: Any  # a dataclass
    data: str  # `fingerprint` of what it trains on
    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler


def save_state(run: RunState, facts: Mapping[str, Any], others: Mapping[str, Tensor | None] | None = None) -> None:
    """Write what later epochs depend on; `facts` must be JSON, and of the tensors `others` None is left out."""
    tensors: dict[str, Tensor] = {}
    for name, network in run.networks.items():
        tensors |= prefixed(f"{name}.", network.state_dict())
    for name, optimizer in run.optimizers.items():
        tensors |= optimizer_tensors(optimizer, f"{name}.")
    tensors |= {key: tensor for key, tensor in (others or {}).items() if tensor is not None}
    own = {"settings": recorded(run.settings), "data": run.data, "scaler": run.scaler.state_dict()}
    metadata = {"system": f"{run.system}-training", "run": json.dumps({**own, **facts})}
    save_checkpoint(run.path, tensors, metadata, checked=True)


def load_state(
    run: RunState, free: Collection[str], other_data: str, folder_flag: str = "--output"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give networks, optimisers and scaler what `save_state` took, and return its facts and all tensors.

    Raises ValueError when there is no state, when it is of other data (`other_data` says of which), or when a setting
    differs that is not in `free`; CheckpointError when the tensors do not fit.
    """
    if not run.path.is_file():
        raise ValueError(f"--resume: there is no {run.path}; leave --resume out to begin, or check {folder_flag}")
    damaged = f"--resume: {run.path} is no state of this training, or damaged; leave --resume out to begin anew"
    try:
        tensors, metadata = read_checkpoint(run.path)
    except CheckpointError as error:
        raise ValueError(damaged) from error
    facts = parse_json(metadata.get("run", ""), dict, damaged)
    if not {"data", "settings", "scaler"} <= facts.keys():
        raise ValueError(damaged)
    if facts["data"] != run.data:
        raise ValueError(f"--resume: {other_data} that {run.path} was trained on")
    require_same_settings(run.path, facts["settings"], run.settings, free)
    for name, network in run.networks.items():
        load_strict(network, with_prefix(tensors, f"{name}."), run.path)
    for name, optimizer in run.optimizers.items():
        load_optimizer(optimizer, f"{name}.", tensors)
    run.scaler.load_state_dict(facts["scaler"])
    return facts, tensors


def require_same_settings(path: Path, before: Mapping[str, Any], settings: Any, free: Collection[str]) -> None:
    """Raise ValueError, naming the flag, when the dataclass `settings` differs from those `before` in a field that is
    not in `free`. Settings that only one of them has do not count."""
    now = json.loads(json.dumps(recorded(settings)))
    for name in sorted(now.keys() & before.keys() - free):
        if now[name] != before[name]:
            asked = f"{flag(name)} {before[name]}"
            raise ValueError(f"--resume: {path} was begun with {asked}, not {now[name]}; give {asked}")


def require_same_steps(before: int, steps: int) -> None:
    """Raise ValueError when the epoch in whose middle a state was saved had another number of steps than it has now."""
    if before != steps:
        raise ValueError(
            f"--resume: the state was saved in the middle of an epoch of {before} steps, which has {steps} now; go on "
            "with the number of processes that the run had, until the epoch has ended"
        )


def fingerprint(lines: Iterable[str]) -> str:
    """The SHA-256 of lines that say what a run trains on."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def fingerprint_of_files(paths: Iterable[str]) -> str:
    """Of files, wherever they lie: of their names and those of their folders."""
    return fingerprint("/".join(Path(path).parts[-2:]) for path in paths)


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
        saved = with_prefix(tensors, place)  # in the weight's own memory layout, as the optimiser made it
        moments[index] = {key: value if value.dim() == 0 else _like(weight, value) for key, value in saved.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add the epoch's line to a log; lines of this epoch and later ones, left by an earlier attempt, go."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    damaged = f"{path} has a line that is none of a log; move the file away"
    kept = [line for line in lines if parse_json(line, dict, damaged).get("epoch", -1) < record["epoch"]]
    write_text(path, "\n".join([*kept, json.dumps(record), ""]))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under longer keys."""
    return {prefix + key: value for key, value in tensors.items()}


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """(prefix in the file, weight, the optimiser's tensors of it) for each weight, in the optimiser's order."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, weight in enumerate(weights):
        yield f"{prefix}{index}.", weight, optimizer.state.get(weight, {})


def _like(weight: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(weight, requires_grad=False).copy_(value)
