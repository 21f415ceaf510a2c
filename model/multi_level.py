"""An image tower of CLIB-FIQA that reads all levels of a face recognition network, which stays as it was trained.

Its last layers know who somebody is and forget how the picture was taken; the earlier ones still know blur, light and
occlusion, and the length of its embedding how sure it is. This is our own design, not part of CLIB-FIQA: where faces
are few, a network that millions of faces have taught is better read than trained on (docs/default_model.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import size_of
from .face_trunk import FaceTrunk
from .preprocessing import Preprocessing


class MultiLevelTower(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> features (N, output_dim), not of unit length."""

    def __init__(self, trunk: FaceTrunk, hidden: int = 256, output_dim: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.output_dim = output_dim
        self.standardise = nn.BatchNorm1d(levels_of(trunk), affine=False)
        self.hidden = nn.Linear(levels_of(trunk), hidden)
        self.project = nn.Linear(hidden, output_dim)
        self.dropout = dropout  # of the levels and of the hidden layer, in training only

    @property
    def preprocessing(self) -> Preprocessing:
        """What the trunk expects."""
        return self.trunk.preprocessing

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.levels(x))

    def levels(self, x: Tensor) -> Tensor:
        """What the trunk says of faces (N, 3, S, S): mean and spread of each channel of its maps, its embedding, and
        the logarithm of that embedding's length; (N, L), float32."""
        maps = self.trunk.maps(x)
        embedding = self.trunk.embedding(maps[-1]).float()
        length = embedding.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        spreads = [statistic for level in maps for statistic in _mean_and_spread(level.float())]
        return torch.cat([*spreads, embedding, length.log()], dim=1)

    def read(self, levels: Tensor) -> Tensor:
        """Levels (N, L) -> features (N, output_dim)."""
        x = self.standardise(levels.to(self.hidden.weight.dtype))
        x = F.relu(self.hidden(F.dropout(x, self.dropout, self.training)))
        return self.project(F.dropout(x, self.dropout, self.training))

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> MultiLevelTower:
        """A new tower of the widths found in a state dict, under `prefix`."""
        hidden, output_dim = (size_of(tensors, f"{prefix}{layer}.weight") for layer in ("hidden", "project"))
        return cls(FaceTrunk.shaped_like(tensors, f"{prefix}trunk."), hidden, output_dim)


def levels_of(trunk: FaceTrunk) -> int:
    """L, how many numbers `MultiLevelTower.levels` finds."""
    return 2 * sum(trunk.map_channels) + trunk.output_dim + 1


def _mean_and_spread(level: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the positions of a map: (N, C, H, W) -> two of (N, C)."""
    mean = level.mean(dim=(2, 3))
    variance = level.square().mean(dim=(2, 3)) - mean.square()  # nine times as fast as torch.var_mean here
    return mean, variance.clamp_min(1e-12).sqrt()
