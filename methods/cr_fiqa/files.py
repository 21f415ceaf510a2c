"""What a run writes: the networks as others read them, the log, and the state that --resume continues from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from methods.cr_fiqa.data import Identities
from methods.cr_fiqa.run import CrFiqaRun
from model.checkpoint import load_strict, read_checkpoint, save_checkpoint
from model.files import replacing, write_text
from training.settings import flag
from training.state import load_optimizer, optimizer_tensors, prefixed, without_prefix

# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {
    *("data", "identities", "num_workers", "cache", "start_weights", "lr", "verify", "verify_images", "eval_every"),
    *("output", "save_every", "device", "precision", "resume"),
}


def save_networks(run: CrFiqaRun, identities: Identities) -> Path:
    """Write {step}backbone.pth, {step}header.pth (flat state dicts) and {step}classes.txt; return the first's path."""
    folder = Path(run.config.output)
    path = folder / f"{run.step}backbone.pth"
    write_text(folder / f"{run.step}classes.txt", "".join(f"{name}\n" for name in identities.classes))
    save_tensors(folder / f"{run.step}header.pth", {"kernel": run.header.kernel})
    save_tensors(path, run.backbone.state_dict())
    return path


def save_state(run: CrFiqaRun, identities: Identities) -> None:
    """Write state.safetensors: all that later epochs depend on (orders and dropout follow from seed and epoch)."""
    tensors = prefixed("backbone.", run.backbone.state_dict()) | prefixed("header.", run.header.state_dict())
    for name, optimizer in run.optimizers.items():
        tensors |= optimizer_tensors(optimizer, f"{name}-optimizer.")
    if run.variance is not None:
        tensors["variance"] = run.variance
    facts = {
        "epoch": run.epoch,
        "step": run.step,
        "best": run.best,
        "scaler": run.scaler.state_dict(),
        "settings": asdict(run.config),
        "data": _fingerprint(identities),
    }
    save_checkpoint(_state_path(run), tensors, {"system": "cr-fiqa-training", "run": json.dumps(facts)})


def load_state(run: CrFiqaRun, identities: Identities) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off.

    Raises ValueError when the state is of other settings or other images.
    """
    path = _state_path(run)
    if not path.is_file():
        raise ValueError(f"--resume: there is no {path}; leave --resume out to begin, or check --output")
    tensors, metadata = read_checkpoint(path)
    facts = json.loads(metadata["run"])
    if facts["data"] != _fingerprint(identities):
        raise ValueError(f"--resume: the images and identities are not those that {path} was trained on")
    now = json.loads(json.dumps(asdict(run.config)))
    for name, before in facts["settings"].items():
        if name in now and name not in FREE and now[name] != before:
            raise ValueError(f"--resume: {path} was begun with {flag(name)} {before}, not {now[name]}")
    load_strict(run.backbone, without_prefix("backbone.", tensors), path)
    load_strict(run.header, without_prefix("header.", tensors), path)
    for name, optimizer in run.optimizers.items():
        load_optimizer(optimizer, f"{name}-optimizer.", tensors)
    if run.variance is not None:
        run.variance.copy_(tensors["variance"])
    run.scaler.load_state_dict(facts["scaler"])
    run.epoch, run.step, run.best = facts["epoch"], facts["step"], facts["best"]


def _state_path(run: CrFiqaRun) -> Path:
    return Path(run.config.output) / "state.safetensors"


def _fingerprint(identities: Identities) -> str:
    """Of which image is of which class, wherever the images lie."""
    rows, labels = identities.images.usable, identities.labels
    names = [Path(identities.images.paths[row]).name for row in rows.tolist()]
    text = "\n".join([*identities.classes, *names, *map(str, labels[rows].tolist())])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a flat state dict as others read it (torch.save), atomically."""
    with replacing(path) as temporary:
        torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
