"""An image tower of CLIB-FIQA that reads the feature maps of all levels of a frozen face recognition network.

The last layers of such a network tell identities apart and suppress how the picture was taken. Earlier layers still
hold blur, light and occlusion, and the L2 norm of the embedding grows with the network's confidence. This is our own
design, not part of CLIB-FIQA: with few training faces, a network that was trained on millions of faces gives better
features than fine-tuning does (docs/default_model.md). A second network, the trunk of an MFN, which was trained to
recognise the factors, may be read beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import size_of
from .face_trunk import FaceTrunk
from .mobilefacenet import MobileFaceNet
from .preprocessing import FACE_PREPROCESSING, Preprocessing

TRUNKS = ("trunk.", "factor_trunk.")  # prefixes of the networks that are read, which may be frozen


class MultiLevelTower(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> features (N, output_dim), not of unit length."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        trunk: FaceTrunk,
        hidden: int = 512,
        output_dim: int = 128,
        dropout: float = 0.0,
        factor_trunk: MobileFaceNet | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.factor_trunk = trunk, factor_trunk
        self.output_dim = output_dim
        self.width = _levels_of(trunk) + (2 * sum(factor_trunk.map_channels) if factor_trunk else 0)  # L
        self.standardise = nn.BatchNorm1d(self.width, affine=False)
        self.hidden = nn.Linear(self.width, hidden)
        self.project = nn.Linear(hidden, output_dim)
        self.dropout = dropout  # of the levels and of the hidden layer, in training only
        own, other = self.preprocessing, FACE_PREPROCESSING  # the factor trunk expects its own normalisation
        changes = zip(*map(_change_of, own.mean, own.std, other.mean, other.std), strict=True)
        for name, values in zip(("scale", "shift"), changes, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the trunk expects."""
        return self.trunk.preprocessing

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.levels(x))

    def levels(self, x: Tensor) -> Tensor:
        """The features of faces (N, 3, S, S) at all levels of the trunk, (N, L) float32: mean and standard deviation of
        each channel of its maps, its embedding, and the logarithm of the embedding's L2 norm; then those of the factor
        trunk's maps."""
        maps = self.trunk.maps(x)
        embedding = self.trunk.embedding(maps[-1]).float()
        length = embedding.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([*_means_and_spreads(maps), embedding, length.log(), *self._factor_levels(x)], dim=1)

    def _factor_levels(self, x: Tensor) -> list[Tensor]:
        if self.factor_trunk is None:
            return []
        return _means_and_spreads(self.factor_trunk.maps(x * self.scale + self.shift))

    def read(self, levels: Tensor) -> Tensor:
        """Levels (N, L) -> features (N, output_dim)."""
        x = self.standardise(levels.to(self.hidden.weight.dtype))
        x = F.relu(self.hidden(F.dropout(x, self.dropout, self.training)))
        return self.project(F.dropout(x, self.dropout, self.training))

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> MultiLevelTower:
        """A new tower of the widths found in a state dict, under `prefix`."""
        hidden, output_dim = (size_of(tensors, f"{prefix}{layer}.weight") for layer in ("hidden", "project"))
        trunk, factors = FaceTrunk.shaped_like(tensors, f"{prefix}trunk."), f"{prefix}factor_trunk."
        has_factors = f"{factors}conv1.conv.weight" in tensors
        factor_trunk = MobileFaceNet.shaped_like(tensors, factors) if has_factors else None
        return cls(trunk, hidden, output_dim, factor_trunk=factor_trunk)


def _levels_of(trunk: FaceTrunk) -> int:
    """How many numbers `MultiLevelTower.levels` finds in a trunk."""
    return 2 * sum(trunk.map_channels) + trunk.output_dim + 1


def _means_and_spreads(maps: Iterable[Tensor]) -> list[Tensor]:
    """Mean and standard deviation over the positions of each map: of each (N, C, H, W) two (N, C), float32."""
    return [statistic for level in maps for statistic in _mean_and_spread(level.float())]


def _mean_and_spread(level: Tensor) -> tuple[Tensor, Tensor]:
    mean = level.mean(dim=(2, 3))
    variance = level.square().mean(dim=(2, 3)) - mean.square()  # nine times as fast as torch.var_mean here
    return mean, variance.clamp_min(1e-12).sqrt()


def _change_of(mean: float, std: float, other_mean: float, other_std: float) -> tuple[float, float]:
    """Scale and shift that turn (x - mean) / std into (x - other_mean) / other_std."""
    return std / other_std, (mean - other_mean) / other_std
