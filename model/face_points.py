"""The five points of a roughly aligned face, and whether there is a face at all.

The network looks at a window of 72x72 pixels of the ArcFace template. Two kinds of features are read: those of the last
network (O-Net) of MTCNN (Zhang et al., 2016, arXiv 1604.02878) as facenet-pytorch published it, and histograms of
oriented gradients. Two layers, trained by `recipes/raw_photographs/train_points.py`, make of them where the points lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build, size_of

SIZE = 72  # pixels
CENTRE = (56.0, 66.0)  # x, y in the 112x112 template of the window's centre
POINTS = 5
TRUNK_SIZE = 48
DIRECTIONS, CELL = 8, 8
CELLS = 2 * SIZE // CELL - 1  # cells overlap by half
FEATURES = 1152 + 256 + DIRECTIONS * CELLS**2


class OutputNet(nn.Module):
    """The layers of MTCNN's O-Net up to the last but one: pictures (N, 3, 48, 48) in about [-1, 1] -> (N, 1408)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        return torch.cat([x, self.prelu5(self.dense5(x))], dim=1)


class FacePoints(nn.Module):
    """Windows, RGB (N, 72, 72, 3), uint8 or float in [0, 255] -> points (N, 5, 2) and logits (N,).

    The points are x and y in pixels of the 112x112 template, in which the window's centre is `CENTRE`. A logit above 0
    says that there is a face, roughly where the template has one.
    """

    metadata: Mapping[str, str] = {}
    mean: Tensor
    std: Tensor

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.trunk = OutputNet()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))
        self.linear = nn.Linear(FEATURES, 2 * POINTS + 1)
        self.hidden = nn.Linear(FEATURES, hidden)
        self.output = nn.Linear(hidden, 2 * POINTS + 1, bias=False)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.read(self.features(windows))

    def features(self, windows: Tensor) -> Tensor:
        """What the trained layers read: (N, FEATURES)."""
        x = windows.permute(0, 3, 1, 2).float()
        small = F.interpolate(x, size=(TRUNK_SIZE, TRUNK_SIZE), mode="bilinear", antialias=True)
        return torch.cat([self.trunk((small - 127.5) / 128), oriented_gradients(x)], dim=1)

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Points and logits of features."""
        x = (features - self.mean) / self.std
        y = self.linear(x) + self.output(F.relu(self.hidden(x)))
        return y[:, :-1].unflatten(1, (POINTS, 2)), y[:, -1]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> FacePoints:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(lambda: cls(size_of(tensors, "hidden.weight")), tensors)


def oriented_gradients(x: Tensor) -> Tensor:
    """How strong the gradients are in each of 8 directions in overlapping cells of 8x8 pixels, relative to the
    neighbourhood: pictures (N, 3, 72, 72) in [0, 255] -> (N, 8 * 17 * 17)."""
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    dy = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    angle = torch.arange(DIRECTIONS, device=x.device).view(1, -1, 1, 1) * (2 * math.pi / DIRECTIONS)
    cells = F.avg_pool2d(F.relu(dx * angle.cos() + dy * angle.sin()), CELL, CELL // 2)
    energy = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 5, 1, 2, count_include_pad=False)
    return (cells / (energy + 4).sqrt()).flatten(1)
