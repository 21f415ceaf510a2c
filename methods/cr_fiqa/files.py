"""What a run writes: the networks as others read them, the log, and the state that --resume continues from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from methods.cr_fiqa.data import Identities
from methods.cr_fiqa.run import CrFiqaRun
from model.files import replacing, write_text
from training import state

# Settings that a resumed run may change; the others would make two runs out of one.
FREE = {
    *("data", "identities", "num_workers", "cache", "start_weights", "lr", "verify", "verify_images", "eval_every"),
    *("save_every", "save_every_steps", "device", "precision", "compile"),
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
    """Write state.safetensors: all that later steps depend on (orders, flips and dropout follow from the seed)."""
    facts = {"epoch": run.epoch, "step": run.step, "best": run.best, "steps": run.steps}
    state.save_state(_state_of(run, identities), facts, {"variance": run.variance, "past": run.past})


def load_state(run: CrFiqaRun, identities: Identities) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off.

    Raises ValueError when the state is of other settings or other images.
    """
    facts, tensors = state.load_state(_state_of(run, identities), FREE, "the images and identities are not those")
    if run.variance is not None:
        run.variance.copy_(tensors["variance"])
    run.epoch, run.step, run.best = facts["epoch"], facts["step"], facts["best"]
    run.past, run.steps = tensors.get("past"), facts.get("steps", 0)


def _state_of(run: CrFiqaRun, identities: Identities) -> state.RunState:
    return state.RunState(
        Path(run.config.output) / "state.safetensors",
        "cr-fiqa",
        run.config,
        _fingerprint(identities),
        {"backbone": run.backbone, "header": run.header},
        {f"{name}-optimizer": optimizer for name, optimizer in run.optimizers.items()},
        run.scaler,
    )


def _fingerprint(identities: Identities) -> str:
    """Of which image is of which class, wherever the images lie."""
    rows, labels = identities.images.usable, identities.labels.cpu()
    names = [Path(identities.images.paths[row]).name for row in rows.tolist()]
    return state.fingerprint([*identities.classes, *names, *map(str, labels[rows].tolist())])


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a flat state dict as others read it (torch.save), atomically. Raises OSError, as for a full disk."""
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:  # given a name, torch would store it
        try:
            torch.save(on_cpu, file)
        except RuntimeError as error:  # torch's own, of a position in its archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
