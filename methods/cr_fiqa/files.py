"""What a run writes: the networks as others read them, the log, and the state that --resume continues from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from methods.cr_fiqa.data import Identities
from methods.cr_fiqa.run import CrFiqaRun
from model.files import replacing, write_text
from training import state

# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {
    *("data", "identities", "num_workers", "cache", "start_weights", "lr", "verify", "verify_images", "eval_every"),
    *("output", "save_every", "device", "precision", "compile", "resume"),
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
    facts = {
        "epoch": run.epoch,
        "step": run.step,
        "best": run.best,
        "scaler": run.scaler.state_dict(),
        "settings": asdict(run.config),
        "data": _fingerprint(identities),
    }
    others = {"variance": run.variance}
    state.save_state(_state_path(run), "cr-fiqa", _networks(run), _optimizers(run), others, facts)


def load_state(run: CrFiqaRun, identities: Identities) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off.

    Raises ValueError when the state is of other settings or other images.
    """
    path = _state_path(run)
    tensors, facts = state.read_state(path, "--output")
    if facts["data"] != _fingerprint(identities):
        raise ValueError(f"--resume: the images and identities are not those that {path} was trained on")
    state.require_same_settings(path, facts["settings"], run.config, FREE)
    state.restore(path, tensors, _networks(run), _optimizers(run))
    if run.variance is not None:
        run.variance.copy_(tensors["variance"])
    run.scaler.load_state_dict(facts["scaler"])
    run.epoch, run.step, run.best = facts["epoch"], facts["step"], facts["best"]


def _networks(run: CrFiqaRun) -> dict[str, nn.Module]:
    return {"backbone": run.backbone, "header": run.header}


def _optimizers(run: CrFiqaRun) -> dict[str, torch.optim.SGD]:
    return {f"{name}-optimizer": optimizer for name, optimizer in run.optimizers.items()}


def _state_path(run: CrFiqaRun) -> Path:
    return Path(run.config.output) / "state.safetensors"


def _fingerprint(identities: Identities) -> str:
    """Of which image is of which class, wherever the images lie."""
    rows, labels = identities.images.usable, identities.labels.cpu()
    names = [Path(identities.images.paths[row]).name for row in rows.tolist()]
    text = "\n".join([*identities.classes, *names, *map(str, labels[rows].tolist())])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a flat state dict as others read it (torch.save), atomically."""
    with replacing(path) as temporary:
        torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
