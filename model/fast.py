"""Networks made fast for inference: the same function with less arithmetic and fewer passes over memory.

- Batch norms are folded into the convolutions before them.
- On a CPU, a convolution, the addition of a shortcut and the ReLU are one call of oneDNN, with weights laid out once
  for its kernels. That is what `torch.compile` would make of it, without its minute of compilation (docs/inference.md).
- CLIP's attention pool has a single query, so that keys and values need not be projected.
"""

from __future__ import annotations

import threading
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .center_face import Widened
from .clip import AttentionPool, Bottleneck, ModifiedResNet
from .face_points import Block
from .face_trunk import ConvNormReLU6, DepthwiseStem, InvertedResidual
from .folding import fold_batch_norms
from .iresnet import IBasicBlock

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on CUDA (fp16 where there is none), and fp32 elsewhere: on a CPU a score then does not depend on
    which one it is. bf16 (RN50 within 0.005 of fp32, the shipped models within 0.01) is two to three times faster on
    CPUs with AMX; without AMX it may even be slower, so it is for the user to choose."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


def accelerate(network: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Converts an eval-mode network, in place, into a faster equivalent on `device`.

    It takes images (N, 3, S, S) of `dtype` in channels_last memory; the outputs are the same up to the rounding of
    `dtype`. The network given must not be used afterwards. On CUDA, fp32 switches TF32 off for the whole process, whose
    convolutions would keep 10 bits of the mantissa only.
    """
    size, made_on = network.preprocessing.size, next(network.parameters()).device
    fold_batch_norms(network.requires_grad_(False), torch.zeros(1, 3, size, size, device=made_on))
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
    network = network.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return fast_resnet(network) if isinstance(network, ModifiedResNet) else fuse_convolutions(network)


def fast_resnet(tower: ModifiedResNet) -> nn.Sequential:
    """CLIP's image tower, its batch norms already folded, of fused parts."""
    stages: Any = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
    return nn.Sequential(
        FusedConv(tower.conv1, "relu"),
        FusedConv(tower.conv2, "relu"),
        FusedConv(tower.conv3, "relu"),
        tower.avgpool,
        *(FastBottleneck(block) for stage in stages for block in stage),
        FastAttentionPool(tower.attnpool),
    )


PACKING = threading.Lock()  # of the module and not of each layer: a lock cannot be copied or pickled
ACTIVATIONS = {  # name -> how oneDNN calls it
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}


FUSIONS = [("none", False), ("relu", False), ("relu6", False), ("none", True), ("relu", True)]  # activation, shortcut
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}  # as a share of the largest result


class FusedConv(nn.Module):
    """A convolution, then one of `ACTIVATIONS`; with a shortcut its addition, and then ReLU or none.

    `onednn` says whether oneDNN's fused convolutions compute it; the default is to use them where they work.
    """

    def __init__(self, conv: Any, activation: str = "none", onednn: bool | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.activation = conv.weight.detach(), conv.bias, activation
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.onednn, self.packed = onednn_fuses(self.weight) if onednn is None else onednn, False

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, D, H', W'), in the memory of `shortcut` when there is one."""
        if not self.onednn:
            padding, stride, dilation, groups = self.geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if shortcut is None else y.add_(shortcut)
            return y if self.activation == "none" else getattr(F, self.activation)(y, inplace=True)
        onednn = torch.ops.mkldnn
        if not self.packed:
            self._pack([1, *x.shape[1:]])
        activation = ACTIVATIONS[self.activation]
        if shortcut is None:
            return onednn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, *activation)
        with_addition = onednn._convolution_pointwise_.binary
        behind = activation if activation[0] == "relu" else (None, [], None)  # it knows no other, and no "none" either
        return with_addition(shortcut, x, self.weight, self.bias, *self.geometry, "add", 1.0, *behind)

    def _pack(self, size: list[int]) -> None:
        """Lay out the weights for oneDNN's kernels; once, also when several threads come first.

        The layout that suits one image, whose `size` (1, C, H, W) is given, suits a batch; without a size oneDNN
        chooses badly.
        """
        with PACKING:
            if not self.packed:
                self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, size)
                self.packed = True


class FastBottleneck(nn.Module):
    """`Bottleneck` of fused convolutions. It may overwrite its input, which nothing else reads."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (FusedConv(c, "relu") for c in (block.conv1, block.conv2, block.conv3))
        self.pool, self.shortcut = block.pool, block.downsample
        if isinstance(block.downsample, nn.Sequential):
            pool, conv, _ = block.downsample
            self.shortcut = nn.Sequential(pool, FusedConv(conv))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv2(self.conv1(x)))
        return self.conv3(y, self.shortcut(x))


class FastIBasicBlock(nn.Module):
    """`IBasicBlock` of fused convolutions. The norm before the first one stays: zeros pad its output. It may overwrite
    its input, which nothing else reads."""

    def __init__(self, block: IBasicBlock) -> None:
        super().__init__()
        self.norm, self.prelu = block.bn1, block.prelu
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)
        self.shortcut = block.downsample
        if isinstance(block.downsample, nn.Sequential):
            self.shortcut = FusedConv(block.downsample[0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.conv1(self.norm(x)))
        return self.conv2(y, self.shortcut(x))


class FastInvertedResidual(nn.Module):
    """Fused convolutions that widen, filter each channel and narrow. An input that is added is overwritten, since
    nothing else reads it: `FaceTrunk.maps` are the inputs of strided blocks, which add nothing, and `CenterFace` has
    read its maps before."""

    def __init__(self, hidden: nn.Sequential, narrow: Any, residual: bool) -> None:
        super().__init__()
        self.hidden, self.narrow, self.residual = hidden, FusedConv(narrow), residual

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.hidden(x), x if self.residual else None)


def fast_inverted_residual(block: InvertedResidual) -> FastInvertedResidual:
    """That of a face trunk, its norms folded."""
    widen, filter_each, narrow, norm = block.conv
    assert isinstance(norm, nn.Identity), "its norm is folded"
    return FastInvertedResidual(nn.Sequential(fast_relu6(widen), fast_relu6(filter_each)), narrow, block.residual)


def fast_widened(block: Widened) -> FastInvertedResidual:
    """That of CenterFace."""
    convolutions = [conv for conv in (block.expand, block.depthwise) if conv is not None]
    hidden = nn.Sequential(*(FusedConv(conv, "relu") for conv in convolutions))
    return FastInvertedResidual(hidden, block.project, block.residual)


class FastBlock(nn.Module):
    """`Block` of the network of points, of fused convolutions. A shortcut that is its input is overwritten: nothing
    else reads it."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.strided, self.added = block.stride > 1, block.added
        self.depthwise, self.pointwise, self.prelu = FusedConv(block.depthwise), FusedConv(block.pointwise), block.prelu

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = (F.pad(x, (0, 1, 0, 1)), F.max_pool2d(x, 2)) if self.strided else (x, x)
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return self.prelu(self.pointwise(self.depthwise(y), shortcut))


def fast_relu6(block: Any) -> FusedConv:
    """`ConvNormReLU6`, its norm folded, as one call."""
    assert isinstance(block[1], nn.Identity), "its norm is folded"
    return FusedConv(block[0], "relu6")


def fast_stem(stem: DepthwiseStem) -> nn.Sequential:
    """`DepthwiseStem`, its norms folded, as two calls."""
    assert isinstance(stem.bn1, nn.Identity), "its norms are folded"
    return nn.Sequential(FusedConv(stem.depthwise, "relu"), FusedConv(stem.pointwise, "relu"))


FAST: dict[type[nn.Module], Any] = {
    Block: FastBlock,
    IBasicBlock: FastIBasicBlock,
    InvertedResidual: fast_inverted_residual,
    Widened: fast_widened,
    DepthwiseStem: fast_stem,
    ConvNormReLU6: fast_relu6,
    nn.Conv2d: FusedConv,
}


def fuse_convolutions(network: nn.Module) -> nn.Module:
    """Every part of a network that `FAST` knows, its norms folded, in the fast form; in place."""
    for name, child in network.named_children():
        fast = FAST.get(type(child))
        setattr(network, name, fast(child) if fast else fuse_convolutions(child))
    return network


class FastAttentionPool(nn.Module):
    """`AttentionPool` without projecting its tokens, which is 7 % of the tower's arithmetic.

    The only query q meets the key W x + b of a token x as (Wᵀ q) · x + q · b, and q · b, the same for all tokens,
    leaves the softmax alone. The values' projection is linear too: it is applied to their weighted sum.
    """

    def __init__(self, pool: AttentionPool) -> None:
        super().__init__()
        self.heads, self.scale = pool.heads, (pool.q_proj.in_features / pool.heads) ** -0.5
        self.position, self.query, self.output = pool.positional_embedding, pool.q_proj, pool.c_proj
        self.key = pool.k_proj.weight.unflatten(0, (self.heads, -1))  # (heads, head width, channels)
        self.value = pool.v_proj.weight.unflatten(0, (self.heads, -1)).transpose(1, 2).contiguous()
        self.value_bias = pool.v_proj.bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, D)."""
        tokens = x.flatten(2).transpose(1, 2)  # (N, H * W, channels)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.position
        query = self.query(tokens[:, 0]).unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, N, head width)
        probes = (query @ self.key).transpose(0, 1)  # (N, heads, channels)
        attention = ((probes @ tokens.transpose(1, 2)).float() * self.scale).softmax(dim=-1)  # (N, heads, tokens)
        attended = (attention.to(x.dtype) @ tokens).transpose(0, 1)  # (heads, N, channels)
        return self.output((attended @ self.value).transpose(0, 1).flatten(1) + self.value_bias)


def without_onednn(network: nn.Module) -> nn.Module:
    """A network of `accelerate` that has not run yet, with convolutions of torch alone: for exporters, which do not
    know oneDNN's. In place."""
    for part in network.modules():
        if isinstance(part, FusedConv):
            assert not part.packed, "its weights are in oneDNN's order already"
            part.onednn = False
    return network


def onednn_fuses(weight: Tensor) -> bool:
    """Whether oneDNN has fused convolutions for this device and type."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and weight.dtype in CLOSE and _fused_convolutions_work(weight.dtype)


@cache
def _fused_convolutions_work(dtype: torch.dtype) -> bool:
    """Whether they compute what plain convolutions do, tried once for each type.

    They are private functions of torch: another release may have changed or removed them, and then plain convolutions
    do the same more slowly, which a warning says.
    """
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return False
    try:
        work = all(_agrees(dtype, activation, has_shortcut) for activation, has_shortcut in FUSIONS)
    except Exception as error:  # of whatever kind
        work, reason = False, f"they end in an error ({error})"
    else:
        reason = "their results differ from those of plain convolutions"
    if not work:
        warnings.warn(f"torch {torch.__version__}: no fused convolutions of {dtype}, {reason}", stacklevel=2)
    return work


def _agrees(dtype: torch.dtype, activation: str, has_shortcut: bool) -> bool:
    """Whether one kind of fused convolution agrees with the plain one on numbers from -8 to 8."""
    place = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    weight = torch.linspace(-1, 1, 16 * 16 * 9).sin().reshape(16, 16, 3, 3).to(dtype)
    conv = SimpleNamespace(weight=weight, bias=torch.linspace(-1, 1, 16).to(dtype), **place)
    x, shortcut = (torch.linspace(-end, end, 2 * 16 * 25).cos().reshape(2, 16, 5, 5).to(dtype) for end in (90, 70))
    found, expected = (
        FusedConv(conv, activation, onednn)(
            x.contiguous(memory_format=torch.channels_last),
            shortcut.clone(memory_format=torch.channels_last) if has_shortcut else None,
        ).float()
        for onednn in (True, False)
    )
    return bool((found - expected).abs().max() <= CLOSE[dtype] * expected.abs().max())
