"""CenterFace (Xu et al., 2019, arXiv 1911.03599) in PyTorch: a face detector without anchors.

A MobileNetV2 and a feature pyramid give, for every 4x4 pixels of a picture, whether a face has its centre there, how
large it is and where its five points lie. The weights are those of github Star-Clouds/CenterFace (MIT), with every
batch norm folded into the convolution before it; `recipes/raw_photographs/center_face.py` reads them from ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import build

STRIDE = 4  # pixels of the picture for each cell of the output
LARGEST_STRIDE = 32  # sides of pictures are multiples of it
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of MobileNetV2: widening factor, channels, blocks, stride of the first block."""
LEVELS = (1, 2, 4, 6)  # stages whose outputs, with strides 4, 8, 16 and 32, the pyramid reads
WIDTH = 24


class Widened(nn.Module):
    """Widen, filter each channel, narrow. The input is added where the resolution and the width stay the same."""

    def __init__(self, inputs: int, outputs: int, widen: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * widen
        self.residual = stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, hidden, 1) if widen > 1 else None
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu(self.expand(x))
        y = self.project(F.relu(self.depthwise(y)))
        return x + y if self.residual else y


class Cells(NamedTuple):
    """What the network says of each cell (4x4 pixels) of N pictures."""

    score: Tensor
    """(N, H, W): the probability that the centre of a face lies in the cell."""
    box: Tensor
    """(N, H, W, 4): left, top, right, bottom in pixels; a pixel covers the half-open interval from its index on."""
    points: Tensor
    """(N, H, W, 5, 2): x and y of the eyes, the nose tip and the mouth corners, in the same pixels."""


class CenterFace(nn.Module):
    """RGB pictures (N, 3, H, W), float32 in [0, 255], with H and W multiples of 32 -> `Cells`."""

    metadata: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        stages, inputs = [], 32
        for widen, outputs, count, stride in STAGES:
            blocks = []
            for i in range(count):
                blocks.append(Widened(inputs, outputs, widen, stride if i == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(STAGES[level][1], WIDTH, 1) for level in LEVELS)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2) for _ in LEVELS[1:])
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.score = nn.Conv2d(WIDTH, 1, 1)
        self.size = nn.Conv2d(WIDTH, 2, 1)  # logarithm of height and width, in cells
        self.offset = nn.Conv2d(WIDTH, 2, 1)  # y and x of the centre from the cell's centre, in cells
        self.points = nn.Conv2d(WIDTH, 10, 1)  # y and x of each point from the box's corner, as shares of its sides

    def forward(self, x: Tensor) -> Cells:
        x = F.relu(self.stem(x), inplace=True)
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in LEVELS:
                maps.append(F.relu(self.laterals[len(maps)](x), inplace=True))
        x = maps[3]
        for level in (2, 1, 0):
            x = F.relu(self.enlarge[level](x), inplace=True).add_(maps[level])
        x = F.relu(self.conv(x), inplace=True)
        return self._cells(x)

    def _cells(self, x: Tensor) -> Cells:
        score = self.score(x)[:, 0].sigmoid()
        height, width = (STRIDE * self.size(x).exp()).unbind(1)
        offset_y, offset_x = self.offset(x).unbind(1)
        rows, columns = (torch.arange(n, device=x.device) + 0.5 for n in x.shape[2:])
        left = (columns + offset_x) * STRIDE - width / 2
        top = (rows[:, None] + offset_y) * STRIDE - height / 2
        shares = self.points(x).unflatten(1, (5, 2))
        points = torch.stack(
            [left[:, None] + shares[:, :, 1] * width[:, None], top[:, None] + shares[:, :, 0] * height[:, None]], dim=-1
        )
        box = torch.stack([left, top, left + width, top + height], dim=-1)
        return Cells(score, box, points.permute(0, 2, 3, 1, 4))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> CenterFace:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(cls, tensors)
