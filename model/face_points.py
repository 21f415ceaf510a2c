"""The five points of a roughly aligned face, and whether there is a face at all.

The network looks at a part of the ArcFace template. Its trunk is that of MediaPipe's face mesh (Kartynnik et al., 2019,
arXiv 1907.06724), whose published weights were trained on the 468 points of a face's surface. One linear layer reads
from the trunk's features where our five points lie. `recipes/raw_photographs/train_points.py` trained both from there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build

SIZE = 192  # pixels of a window
SPAN = 120.0  # pixels of the 112x112 template that a window shows
CENTRE = (56.0, 66.0)  # x, y in the template of the window's centre
POINTS = 5
MIRRORED = [1, 0, 2, 4, 3]  # which point a mirrored one becomes
ASYMMETRY = 0.35  # pixels of the template by which points lie to the right of where a mirror image would put them
FEATURES = 128 * 6 * 6 + 32 * 3 * 3


class Block(nn.Module):
    """A depthwise and a pointwise convolution beside a shortcut; new channels of the shortcut are 0."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.added = stride, out_channels - channels
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=2 - stride, groups=channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1)
        self.prelu = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            y = x
        else:
            y, x = F.pad(x, (0, 1, 0, 1)), F.max_pool2d(x, 2)  # padded at the right and below only, as TensorFlow does
        y = self.pointwise(self.depthwise(y))
        return self.prelu(y + F.pad(x, (0, 0, 0, 0, 0, self.added)))


class FaceMeshTrunk(nn.Module):
    """Pictures (N, 3, 192, 192) in [0, 1] -> features of 6x6 and of 3x3 cells: (N, 128, 6, 6) and (N, 32, 3, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.prelu = nn.Conv2d(3, 16, 3, 2), nn.PReLU(16)
        blocks = [Block(16, 16), Block(16, 16)]
        for channels, out_channels in ((16, 32), (32, 64), (64, 128), (128, 128)):
            blocks += [Block(channels, out_channels, 2), Block(out_channels, out_channels)]
            blocks += [Block(out_channels, out_channels)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(
            Block(128, 128, 2), Block(128, 128), Block(128, 128), nn.Conv2d(128, 32, 1), nn.PReLU(32), Block(32, 32)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.prelu(self.stem(F.pad(x, (0, 1, 0, 1)))))
        return x, self.last(x)


class FacePoints(nn.Module):
    """Windows, RGB (N, 192, 192, 3), uint8 or float in [0, 255] -> points (N, 5, 2) and logits (N,).

    The points are x and y in pixels of the 112x112 template, in which the window's centre is `CENTRE`. A logit above 0
    says that there is a face, roughly where the template has one.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.trunk = FaceMeshTrunk()
        self.linear = nn.Linear(FEATURES, 2 * POINTS + 1)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(self.features(windows))
        return y[:, :-1].unflatten(1, (POINTS, 2)), y[:, -1]

    def features(self, windows: Tensor) -> Tensor:
        """What the linear layer reads: (N, FEATURES)."""
        return torch.cat([x.flatten(1) for x in self.trunk(windows.permute(0, 3, 1, 2).float() / 255)], dim=1)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> FacePoints:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(cls, tensors)


def mirrored(points: np.ndarray) -> np.ndarray:
    """Points (..., 5, 2) of the mirror image of a window, in the window itself; or the other way round.

    The detector that made the reference, by which face crops are aligned, puts its points a little to the right of the
    middle between what it sees in a picture and in its mirror image. So do the points of this network.
    """
    return ((2 * (CENTRE[0] + ASYMMETRY), 0) + points * (-1, 1))[..., MIRRORED, :]
