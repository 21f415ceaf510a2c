"""A training run of CR-FIQA between two epochs, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from methods.cr_fiqa.config import Config
from methods.cr_fiqa.data import Identities
from model.checkpoint import CheckpointError, read_checkpoint
from model.iresnet import LAYERS, ArcFaceHeader, IResNet
from training import processes
from training.step import arithmetic


@dataclass
class CrFiqaRun:
    """The networks, the optimisers, and all else that later epochs depend on."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of the backbone's arithmetic; weights, header, losses and optimisers are fp32 always
    backbone: IResNet
    header: ArcFaceHeader
    optimizers: dict[str, torch.optim.SGD]  # of `backbone` and `header`
    scaler: torch.amp.GradScaler  # works in fp16 only
    sums: processes.GradientSums  # of the backbone's gradients over the processes
    targets: Tensor | None = None  # the teacher's embeddings (N, 2, D) of each image and its mirror image
    variance: Tensor | None = None  # of the embeddings of each class (C,), where --variance-floor asks for it
    epoch: int = 0  # epochs finished
    step: int = 0  # steps taken
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # pair list -> its best verification so far
    past: Tensor | None = None  # of the epoch in whose middle the run is: `StepValues.over_processes`
    steps: int = 0  # of that epoch


def make_backbone(config: Config) -> IResNet:
    """A new backbone, or that of `--start-weights`, to which a quality head is added when it has none."""
    if not config.start_weights:
        return IResNet(LAYERS[config.depth], config.widths, dropout=config.dropout)
    tensors, metadata = read_checkpoint(config.start_weights)
    if "fc.weight" in tensors and "qs.weight" not in tensors:
        head = nn.Linear(len(tensors["fc.weight"]), 1)
        tensors |= {"qs.weight": head.weight.detach(), "qs.bias": head.bias.detach()}
    try:
        backbone = IResNet.from_tensors(tensors, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"--start-weights {config.start_weights} is no backbone: {error}") from error
    backbone.dropout.p = config.dropout
    return backbone


def start_run(config: Config, device: torch.device, backbone: IResNet, identities: Identities) -> CrFiqaRun:
    """A run at its start weights."""
    header = ArcFaceHeader(backbone.fc.out_features, len(identities.classes))
    backbone.to(device).to(memory_format=torch.channels_last)
    header.to(device)
    fused = device.type in ("cpu", "cuda")  # one pass over the weights
    optimizers = {
        name: torch.optim.SGD(
            network.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=fused,
        )
        for name, network in (("backbone", backbone), ("header", header))
    }
    if config.compile:
        backbone.compile()
    dtype, scaler = arithmetic(config.precision, device)
    sums = processes.GradientSums(backbone.parameters())
    variance = torch.full((len(identities.classes),), torch.nan, device=device) if config.variance_floor else None
    return CrFiqaRun(config, device, dtype, backbone, header, optimizers, scaler, sums, variance=variance)
