"""dlib's face recognition network (Davis King, 2017) in PyTorch: ResNet-29, 150x150 faces to 128 numbers.

dlib runs it on one core, a picture after the other, without giving way to other threads; here it runs in batches, on
any device, with the same result. The weights are read from dlib's `dlib_face_recognition_resnet_model_v1.dat`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError
from .preprocessing import Preprocessing

# (channels, halve the resolution) of the fourteen blocks
BLOCKS = (*[(32, False)] * 3, *[(64, True), *[(64, False)] * 3], *[(128, True), *[(128, False)] * 2],
          *[(256, True), *[(256, False)] * 2], (256, True))
WIDTH = 128
TENSOR = re.compile(rb"\x05con_4|\x07affine_|\x04fc_2\x01\x80\x02\0\x01")   # what comes before one in the file


class Block(nn.Module):
    """Two convolutions and a shortcut. Where the resolution is halved the shortcut is averaged, and whatever is
    smaller, in channels or in pixels, is filled up with zeros."""

    def __init__(self, inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2) if halve else nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.halve:
            x = F.avg_pool2d(x, 2)
        return F.relu(_fill(x, y) + _fill(y, x))


class DlibResNet(nn.Module):
    """Normalised faces (N, 3, 150, 150) -> embeddings (N, 128); dlib takes a distance below 0.6 for one person."""

    metadata: Mapping[str, str] = {}
    preprocessing = Preprocessing(150, (122.782 / 255, 117.001 / 255, 104.298 / 255), (256 / 255,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, BLOCKS[0][0], 7, stride=2)
        inputs = [BLOCKS[0][0], *(channels for channels, _ in BLOCKS)]
        self.blocks = nn.Sequential(*(Block(inputs[i], *block) for i, block in enumerate(BLOCKS)))
        self.fc = nn.Linear(inputs[-1], WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, 2)).mean(dim=(2, 3)))


@torch.no_grad()
def read_dlib_resnet(path: str | Path) -> DlibResNet:
    """The network of dlib's file, in eval mode. The scale and shift behind each convolution are folded into it.

    Raises OSError when the file is missing and CheckpointError when it holds something else.
    """
    network = DlibResNet()
    tensors = _tensors(Path(path).read_bytes())
    try:
        for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
            weight, bias = next(tensors).split([conv.weight.numel(), conv.out_channels])
            scale, shift = next(tensors).view(2, -1)
            conv.weight.copy_(weight.view_as(conv.weight) * scale.view(-1, 1, 1, 1))
            conv.bias = nn.Parameter(bias * scale + shift)
        network.fc.weight.copy_(next(tensors).view(-1, WIDTH).T)
    except (StopIteration, RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not dlib's face recognition network (ResNet v1)") from error
    return network.eval()


def _tensors(content: bytes) -> Iterator[Tensor]:
    """The values of each layer's tensor, in the order of the file, which is that of the network: float32, flat."""
    position = 0
    while found := TENSOR.search(content, position):
        position, shape = found.end(), []
        for _ in range(5):   # version, and four sizes: each a byte that says how many bytes follow, least first
            end = position + 1 + content[position]
            shape.append(int.from_bytes(content[position + 1 : end], "little"))
            position = end
        count = math.prod(shape[1:])
        yield torch.from_numpy(np.frombuffer(content, "<f4", count, position).copy())
        position += 4 * count


def _fill(x: Tensor, other: Tensor) -> Tensor:
    """`x` with zeros behind its channels, rows and columns, where `other` has more of them."""
    missing = [max(0, other.shape[axis] - x.shape[axis]) for axis in (3, 2, 1)]
    return F.pad(x, [padding for amount in missing for padding in (0, amount)])
