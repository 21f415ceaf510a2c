"""IResNet, the residual network of ArcFace (Deng et al., CVPR 2019), with CR-FIQA's quality head and its header.

CR-FIQA (Boutros et al., CVPR 2023) learns face recognition and, from the same embedding, how classifiable an image
is: the similarity to its own class centre (CCS) over that to the nearest other centre (NNCCS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .checkpoint import build, count_blocks, size_of
from .preprocessing import FACE_PREPROCESSING, Preprocessing

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}  # blocks of the four stages
WIDTHS = (64, 128, 256, 512)


class PReLU(nn.PReLU):
    """`nn.PReLU` whose backward pass on the CPU takes half of the time: torch's costs as much as a convolution's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.training:
            return _FastPReLU.apply(x, self.weight)
        return super().forward(x)


class _FastPReLU(torch.autograd.Function):
    """From whole tensors of vectorised operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        where_positive = torch.ops.aten.threshold_backward(grad, x, 0)
        where_negative = grad - where_positive
        grad_x = torch.addcmul(where_positive, where_negative, slope[:, None, None].to(grad.dtype))
        return grad_x, where_negative.mul_(x).sum(dim=(0, 2, 3), dtype=slope.dtype)


class IBasicBlock(nn.Module):
    """Norm, convolution, norm, PReLU, convolution (with the stride), norm; no activation after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, downsample: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Sequential(*shortcut) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class IResNet(nn.Module):
    """Normalised aligned faces (N, 3, S, S) -> embedding (N, D), not of unit length, and quality (N, 1) or None.

    The quality is an unbounded regression of the embedding; only its order means something. CR-FIQA trains with a
    dropout of 0.4.
    """

    metadata: Mapping[str, str] = {}

    def __init__(
        self,
        layers: Sequence[int] = LAYERS[50],
        widths: Sequence[int] = WIDTHS,
        embedding: int = 512,
        quality_head: bool = True,
        dropout: float = 0.0,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(image_size, FACE_PREPROCESSING.mean, FACE_PREPROCESSING.std)
        stem, last = widths[0], widths[3]
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = PReLU(stem)
        self.layer1 = _stage(stem, widths[0], layers[0])
        self.layer2 = _stage(widths[0], widths[1], layers[1])
        self.layer3 = _stage(widths[1], widths[2], layers[2])
        self.layer4 = _stage(widths[2], widths[3], layers[3])
        self.bn2 = nn.BatchNorm2d(last)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last * (image_size // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)
        self.qs = nn.Linear(embedding, 1) if quality_head else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        embedding = self.features(self.fc(self.dropout(x.flatten(1))))
        return embedding, self.qs(embedding) if self.qs is not None else None

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> IResNet:
        """A new network of the sizes found in a state dict, under `prefix`."""
        stages = [f"{prefix}layer{stage}." for stage in (1, 2, 3, 4)]
        widths = [size_of(tensors, f"{stage}0.conv1.weight") for stage in stages]
        positions = size_of(tensors, f"{prefix}fc.weight", axis=1) // widths[3]
        return cls(
            layers=[count_blocks(tensors, stage) for stage in stages],
            widths=widths,
            embedding=size_of(tensors, f"{prefix}fc.weight"),
            quality_head=f"{prefix}qs.weight" in tensors,
            image_size=16 * round(positions**0.5),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> IResNet:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        network = build(lambda: cls.shaped_like(tensors), tensors)
        network.preprocessing = Preprocessing.from_metadata(metadata or {}, network.preprocessing)
        return network


class ArcFaceHeader(nn.Module):
    """A centre for each identity, the columns of `kernel` (D, C): logits to train with, CCS and NNCCS to label with.

    The numbers of a centre lie next to each other in memory, so that some centres can be taken out quickly.
    """

    def __init__(self, embedding: int, identities: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(nn.init.normal_(torch.empty(identities, embedding), std=0.01).t())

    def centres(self) -> Tensor:
        """The centres with L2 norm 1: (D, C). As much work as the cosines of C embeddings: compute them once."""
        return F.normalize(self.kernel, dim=0)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(N, D) -> the cosine to each centre (N, C)."""
        return (F.normalize(embeddings, dim=1) @ self.centres()).clamp(-1, 1)

    @torch.no_grad()
    def similarities(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and identities (N,) -> CCS and NNCCS (N, 1) in [-1, 1] (CR-FIQA, equations 2 and 3)."""
        return similarities_to(self.centres(), F.normalize(embeddings, dim=1), labels)

    def logits(self, embeddings: Tensor, labels: Tensor, s: float = 64.0, m: float = 0.5) -> Tensor:
        """s * cos(angle + m) for the own identity, s * cos(angle) for the others: (N, D), (N,) -> (N, C)."""
        cosines, own = self.cosines(embeddings), labels[:, None]
        # acos has an infinite slope at ±1, which would turn the gradient into NaN.
        angles = cosines.gather(1, own).clamp(-1 + 1e-7, 1 - 1e-7).acos()
        return s * cosines.scatter(1, own, (angles + m).cos())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> ArcFaceHeader:
        """From a state dict, in eval mode. Raises CheckpointError when it does not fit."""
        embedding, identities = (size_of(tensors, "kernel", axis) for axis in (0, 1))
        return build(lambda: cls(embedding, identities), tensors)


def similarities_to(centres: Tensor, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """CCS and NNCCS (N, 1) in [-1, 1] of embeddings (N, D) and their identities (N,), for centres (D, C).

    Embeddings and centres have L2 norm 1. NNCCS is the true one: the published code replaces a negative NNCCS by
    -1e-12, which makes the ratio explode. The cosines (N, C) are the only large tensor.
    """
    cosines, own = embeddings @ centres, labels[:, None]
    ccs = cosines.gather(1, own).clamp(-1, 1)
    nnccs = cosines.scatter_(1, own, -torch.inf).amax(dim=1, keepdim=True).clamp(-1, 1)
    return ccs, nnccs


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """The first block halves the resolution, the others keep it."""
    rest = (IBasicBlock(outputs, outputs, stride=1, downsample=False) for _ in range(blocks - 1))
    return nn.Sequential(IBasicBlock(inputs, outputs, stride=2, downsample=True), *rest)
