"""DSL-FIQA made fast for inference on a CPU: the same function by oneDNN's matrix products.

PyTorch multiplies fp32 matrices with MKL, which reaches less than half of oneDNN's speed on CPUs of AMD
(benchmarks/dsl_fiqa.py). The degradation encoder's batch norms are folded, and all weights are laid out once. In bf16
the trunk's attention is two products and a softmax, which takes half of the time of PyTorch's fused operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .dsl_fiqa import DslFiqa, TransposedAttention
from .fast import PACKING, FusedConv, accelerate, onednn_fuses
from .folding import fold_batch_norms


def accelerate_dsl_fiqa(network: DslFiqa, dtype: torch.dtype) -> DslFiqa:
    """Converts an eval-mode network, in place, on a CPU that has oneDNN for `dtype`; else it stays as it is.

    In bf16 and fp16 the network still runs under autocast, which casts the convolutions. The encoder may no longer be
    trained or stored afterwards.
    """
    if not onednn_fuses(torch.empty(0, dtype=dtype, device=next(network.parameters()).device)):
        return network
    network.requires_grad_(False)
    if network.encoder is not None:
        if dtype == torch.float32:
            accelerate(network.encoder, dtype, torch.device("cpu"))
        else:
            fold_batch_norms(network.encoder, torch.zeros(1, 3, 32, 32))
    for block in network.vit.blocks:
        block.attn.fused_attn = dtype == torch.float32
    _replace(network, dtype)
    return network


class FusedLinear(nn.Module):
    """A linear layer whose weights are laid out for oneDNN: (..., C) of any type -> (..., D) of the weights' type."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.packed = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            with PACKING:
                if not self.packed:
                    self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)
                    self.packed = True
        return product(x.to(self.weight.dtype), self.weight, self.bias)


class FastTransposedAttention(nn.Module):
    """`TransposedAttention` of oneDNN's products, picture by picture: its table of C x C weights is large."""

    def __init__(self, layer: TransposedAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (FusedLinear(one, dtype) for one in (layer.c_q, layer.c_k, layer.c_v))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) -> the same shape."""
        q, k, v = self.c_q(x), self.c_k(x), self.c_v(x)
        q = q * q.shape[2] ** -0.5
        y = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        for one in range(len(x)):
            weights = product(q[one], k[one]).softmax(dim=1)  # (C, C)
            y[one] = product(v[one].T.contiguous(), weights)  # the transposed result, (T, C)
        return x + y.view(x.shape)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C) and the rows of weight (D, C): x @ weight.T + bias."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    """Every linear layer, transposed attention and, in fp32, convolution below a module."""
    for name, child in module.named_children():
        fast: Any = child
        if type(child) is nn.Linear:
            fast = FusedLinear(child, dtype)
        elif isinstance(child, TransposedAttention):
            fast = FastTransposedAttention(child, dtype)
        elif type(child) is nn.Conv2d and dtype == torch.float32:
            fast = FusedConv(child.to(memory_format=torch.channels_last))
        else:
            _replace(child, dtype)
        if fast is not child:
            setattr(module, name, fast)
