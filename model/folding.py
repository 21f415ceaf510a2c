"""Batch norms folded into the convolutions before them: the same function, up to rounding, with fewer passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Fold every batch norm that reads the output of a convolution, in place; `network` is in eval mode.

    Which one reads which is seen when the network runs on `images` (N, 3, S, S). Outputs of convolutions must go
    nowhere else, as it is in all networks here; a batch norm before a convolution stays, because zeros pad its output.
    """
    made_by: dict[int, tuple[Tensor, nn.Conv2d]] = {}   # the tensors are kept, so that no two have the same id
    pairs: dict[Any, nn.Conv2d] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = output, module
        elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and id(inputs[0]) in made_by:
            pairs[module] = made_by[id(inputs[0])][1]

    hooks = [module.register_forward_hook(watch) for module in network.modules()]
    network(images)
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in pairs:
                setattr(parent, name, nn.Identity())
