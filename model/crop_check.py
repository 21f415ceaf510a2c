"""The small network that tells quickly whether a picture of 112x112 pixels is an aligned face crop.

It looks at the picture in grey, at half the size, with its mean and contrast taken out: colour and light are not what
tells a face. `recipes/raw_photographs/train_crop_check.py` trained it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .checkpoint import build

SIZE = 56  # pixels of a side of the grey picture
CELLS = 7  # of a side of the last feature map
CONVOLUTIONS = ((1, 16, 5, 2), (16, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 1))
"""Channels in and out, side of the kernel, stride."""
LEAST_CONTRAST = 4.0  # grey levels, added to the standard deviation: noise of a flat picture stays small


class CropCheck(nn.Module):
    """Grey pictures (N, 56, 56), uint8 or float in [0, 255] -> logits (N,), large for an aligned face."""

    metadata: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out_channels, side, stride in CONVOLUTIONS:
            layers += [nn.Conv2d(channels, out_channels, side, stride, side // 2), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(CONVOLUTIONS[-1][1] * CELLS * CELLS, 1)  # it knows where each feature lies

    def forward(self, grey: Tensor) -> Tensor:
        x = grey.float().flatten(1)
        deviation, mean = torch.std_mean(x, dim=1, keepdim=True)
        x = ((x - mean) / (deviation + LEAST_CONTRAST)).view(-1, 1, SIZE, SIZE)
        return self.linear(self.features(x).flatten(1))[:, 0]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> CropCheck:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        return build(cls, tensors)
