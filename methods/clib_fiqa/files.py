"""What a run writes into its folder: the state that --resume continues from, the log, the confidences, the model.

All are written atomically, and none needs unpickling: safetensors, JSON lines and tab-separated text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from methods.clib_fiqa.calibration import certainty
from methods.clib_fiqa.data import LabelledFaces
from methods.clib_fiqa.run import ClibFiqaRun
from model.checkpoint import save_checkpoint, sha256_of
from model.files import write_text
from model.prompts import prompts_hash
from training import state
from training.settings import recorded

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from config_train import TrainConfig

# Settings that a resumed run may change; the others would make two runs out of one. Of the label table and the start
# weights only the path may change.
FREE = {
    *("data_list", "clip_model", "mlp", "device", "precision", "num_workers", "cache", "compile"),
    *("epochs", "lr", "mlp_lr", "save_every", "save_every_steps", "save_text_tower", "tensorboard"),
}


def write_epoch(run: ClibFiqaRun, faces: LabelledFaces, record: Mapping[str, Any]) -> None:
    """Write what the finished epoch leaves: its line of the log, at calibration the confidences, and the state."""
    write_log(run, record)
    if "confidence" in record:
        write_confidences(run, faces)
    if run.epoch % run.config.save_every == 0 or run.epoch == run.config.epochs:
        save_state(run)


def save_state(run: ClibFiqaRun) -> None:
    """Write state.safetensors: all that later steps depend on (orders, flips and dropout follow from the seed)."""
    facts = {"epoch": run.epoch, "history": run.history, "steps": run.steps}
    state.save_state(_state_of(run), facts, {"divergences": run.divergences, "past": run.past})


def load_state(run: ClibFiqaRun) -> None:
    """Put `run`, as `start_run` made it, where state.safetensors left off.

    Raises ValueError when the state is of other settings or another label table.
    """
    free = FREE if run.config.lr_period else FREE - {"epochs"}  # without a period the rate falls over all epochs
    other_table = f"{run.config.data_list} is not the table"
    facts, tensors = state.load_state(_state_of(run), free, other_table, "--checkpoints")
    run.epoch, run.history = facts["epoch"], facts["history"]
    run.divergences = tensors["divergences"].to(run.device) if "divergences" in tensors else None
    run.past, run.steps = tensors.get("past"), facts.get("steps", 0)


def model_path(config: TrainConfig) -> Path:
    """The finished network."""
    return Path(config.checkpoints) / "clib_fiqa.safetensors"


def save_model(run: ClibFiqaRun) -> None:
    """Write clib_fiqa.safetensors and, beside it, mlp.safetensors, with where they come from."""
    path, visual = model_path(run.config), run.model.clip.visual
    heads = {key: value for key, value in run.model.metadata.items() if key in ("text_heads", "vision_heads")}
    provenance = {
        "settings": json.dumps(recorded(run.config)),
        "epochs": str(run.epoch),
        "data_sha256": sha256_of(run.config.data_list),
        "torch": torch.__version__,
    }
    network = {
        "system": "clib-fiqa",
        "architecture": f"CLIP with {type(visual).__name__}",
        "prompts": prompts_hash(),
        "preprocessing": run.model.preprocessing.to_json(),
    }
    save_checkpoint(path, run.model.to_tensors(run.config.save_text_tower), network | heads | provenance)
    save_checkpoint(path.with_name("mlp.safetensors"), run.mlp.state_dict(), {"system": "confidence-mlp"} | provenance)


def write_log(run: ClibFiqaRun, record: Mapping[str, Any]) -> None:
    """Add the epoch's line to log.jsonl; lines of this epoch and later ones, left by an earlier attempt, go."""
    state.write_record(Path(run.config.checkpoints) / "log.jsonl", record)
    if run.config.tensorboard:
        _write_tensorboard(run, record)


def write_confidences(run: ClibFiqaRun, faces: LabelledFaces) -> None:
    """Write confidence.tsv: path, divergence d and certainty rho of each row that trains, in the table's order."""
    assert run.divergences is not None, "before calibration"
    divergences, usable = run.divergences.cpu(), faces.images.usable
    rows = zip(usable.tolist(), divergences[usable].tolist(), strict=True)
    rho = certainty(divergences).tolist()
    lines = [f"{faces.images.paths[row]}\t{d!r}\t{rho[row]!r}" for row, d in rows]
    write_text(Path(run.config.checkpoints) / "confidence.tsv", "\n".join(["path\tdivergence\tcertainty", *lines, ""]))


def _state_of(run: ClibFiqaRun) -> state.RunState:
    return state.RunState(
        Path(run.config.checkpoints) / "state.safetensors",
        "clib-fiqa",
        run.config,
        sha256_of(run.config.data_list),
        {"model": run.model, "mlp": run.mlp},
        {"optimizer": run.optimizer},
        run.scaler,
    )


def tensorboard_writer() -> type[SummaryWriter]:
    """What writes tensorboard's files. Raises ValueError when the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs a package: pip install tensorboard") from error
    return SummaryWriter


def _write_tensorboard(run: ClibFiqaRun, record: Mapping[str, Any]) -> None:
    with tensorboard_writer()(run.config.checkpoints, purge_step=record["epoch"]) as writer:
        writer.add_scalar("lr", record["lr_used"], record["epoch"])
        writer.add_scalar("total", record["total"], record["epoch"])
        for name, value in record["losses"].items():
            if value is not None:
                writer.add_scalar(f"losses/{name}", value, record["epoch"])
