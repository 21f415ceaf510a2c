"""A training run between two epochs, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from methods.clib_fiqa.frozen import tower_of
from model import load
from model.clib_fiqa import ClibFiqa
from model.clip import TEXT_TOWER_KEYS
from model.confidence import ConfidenceMLP
from model.multi_level import TRUNKS, MultiLevelTower
from training import processes
from training.step import arithmetic

if TYPE_CHECKING:
    from config_train import TrainConfig

Network = TypeVar("Network", bound=nn.Module)
FROZEN_BY_PUBLISHED_CODE = ("transformer", "positional_embedding", "text_projection")  # anywhere in a name


@dataclass
class ClibFiqaRun:
    """The networks, the optimiser, and all else that later epochs depend on."""

    config: TrainConfig
    device: torch.device
    dtype: torch.dtype  # of the networks' arithmetic; weights, losses and optimiser are fp32 always
    model: ClibFiqa
    mlp: ConfidenceMLP
    optimizer: torch.optim.AdamW  # two groups: what trains of the model, and the MLP
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: processes.GradientSums  # of the model's gradients over the processes
    epoch: int = 0  # epochs finished
    history: list[list[float]] = field(default_factory=list)  # each epoch's mean losses, in the order of TASKS
    divergences: Tensor | None = None  # d of each row of the table (N,), NaN where unusable; None in stage 1
    past: Tensor | None = None  # of the epoch in whose middle the run is: `StepValues.over_processes`
    steps: int = 0  # of that epoch


def start_run(config: TrainConfig, device: torch.device) -> ClibFiqaRun:
    """A run at its start weights. Raises ValueError for weights that do not fit."""
    torch.manual_seed(config.seed)  # of a new MLP; all else that is random has a generator of its own
    model = _load(config.clip_model, ClibFiqa, "--clip-model")
    mlp = _load(config.mlp, ConfidenceMLP, "--mlp") if config.mlp else ConfidenceMLP()
    return prepare_run(config, device, model, mlp)


def prepare_run(config: TrainConfig, device: torch.device, model: ClibFiqa, mlp: ConfidenceMLP) -> ClibFiqaRun:
    """Put the networks on the device, freeze what `--freeze` names, and make the optimiser of the rest."""
    freeze(model, config.freeze)
    if isinstance(model.clip.visual, MultiLevelTower):
        model.clip.visual.dropout = config.dropout
    if processes.count() > 1 and device.type == "cuda":  # on the CPU each process has batch statistics of its own
        model = synchronise_batch_norms(model, config.freeze)
    model.to(device).to(memory_format=torch.channels_last)
    if config.compile:
        model.clip.visual.compile()
    mlp.to(device)
    groups = [[weight for weight in model.parameters() if weight.requires_grad], list(mlp.parameters())]
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups],
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),  # one pass over the weights instead of ten
    )
    dtype, scaler = arithmetic(config.precision, device)
    sums = processes.GradientSums(groups[0])  # the MLP's gradients are those of the whole batch in every process
    return ClibFiqaRun(config, device, dtype, model, mlp, optimizer, scaler, sums)


def freeze(model: ClibFiqa, rule: str) -> None:
    """Freeze the parameters that the rule names (`--freeze`); the others train.

    `text-tower` leaves the image tower and the temperature (paper). `published` goes by parts of names, as the
    published code does: it freezes the image tower's positional embedding too, and trains the text tower's token
    embedding and last norm. `trunk` freezes those of a `MultiLevelTower`. Raises ValueError when the rule needs a text
    tower, or such a trunk, and there is none.
    """
    if rule == "trunk":
        tower_of(model)
    if rule != "text-tower" and model.clip.text_shape is None:
        raise ValueError(
            f"--freeze {rule} trains parts of the text tower, which the start weights do not hold; "
            "take --freeze text-tower, or a --clip-model with a text tower"
        )
    for name, parameter in model.clip.named_parameters():
        frozen = {
            "text-tower": name.startswith(TEXT_TOWER_KEYS),
            "published": any(part in name for part in FROZEN_BY_PUBLISHED_CODE),
            "none": False,
            "trunk": name.removeprefix("visual.").startswith(TRUNKS),
        }
        parameter.requires_grad_(not frozen[rule])


def synchronise_batch_norms(model: ClibFiqa, rule: str) -> ClibFiqa:
    """Let the batch norms that train use the statistics of the whole batch. A frozen trunk stays as it is."""
    if rule != "trunk":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    tower = tower_of(model)
    for name, part in tower.named_children():
        if f"{name}." not in TRUNKS:
            setattr(tower, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))
    return model


def _load(source: str, expected: type[Network], flag: str) -> Network:
    network = load(source)
    if not isinstance(network, expected):
        raise ValueError(f"{flag} {source} holds a {type(network).__name__}; a {expected.__name__} was expected")
    return network
