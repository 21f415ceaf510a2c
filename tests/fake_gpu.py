"""A GPU without its arithmetic: tensors that know shape, type and the device "cuda" only, and collectives like NCCL's.

With `FakeTensorMode` a mix of devices, a wrong shape or a number that is read in a step is an error. It does not show
whether the values are right, what the backward pass does, or how fast anything is: for that there is tests/test_gpu.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor

CUDA = torch.device("cuda", 0)


@contextlib.contextmanager
def fake_gpu(bf16: bool = True) -> Iterator[pytest.MonkeyPatch]:
    """In the block tensors are fake, those on CUDA too; real ones from outside are taken as if they were."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(nn.Module, "_apply", _replace_parameters)
        patch.setattr(FakeTensorMode, "avoid_device_init", True)  # else it makes some tensors on the card
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
        patch.setattr(torch.cuda, "Stream", lambda device=None: SimpleNamespace(device=device))
        patch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda stream: None))
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(wait_event=lambda event: None))
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)  # its kernel has no fake form
        patch.setattr(nn.SyncBatchNorm, "_check_input_dim", lambda self, input: None)
        patch.setattr(torch, "_fused_sgd_", lambda *args, **options: None)  # nor has this
        for name in ("stack", "cat"):  # fake ones let a number on the CPU pass
            patch.setattr(torch, name, _of_one_device(getattr(torch, name)))
        patch.setattr(Tensor, "backward", _give_gradients)
        patch.setattr(Tensor, "pin_memory", lambda self, device=None: self)
        patch.setattr(Tensor, "record_stream", lambda self, stream: None)
        yield patch


def let_numbers_be_read(patch: pytest.MonkeyPatch) -> None:
    """Every number that is read is 0. Without this, reading one is an error."""
    patch.setattr(FakeTensor, "tolist", lambda self: np.zeros(self.shape).tolist())
    patch.setattr(Tensor, "item", lambda self: 0.0)


def pretend_processes(patch: pytest.MonkeyPatch, count: int = 2) -> list[torch.device]:
    """This process is the first of several, whose collectives take CUDA tensors only; the devices that they got."""
    seen: list[torch.device] = []

    def collective(name: str, tensor_of: Callable[..., Tensor]) -> None:
        def call(*args: Any, **options: Any) -> Any:
            tensor = tensor_of(*args)
            seen.append(tensor.device)
            if tensor.device.type != "cuda":
                raise RuntimeError(f"{name}: No backend type associated with device type {tensor.device.type}")
            return SimpleNamespace(wait=lambda: None)

        patch.setattr(dist, name, call)

    collective("all_reduce", lambda tensor, *rest: tensor)
    collective("all_gather", lambda parts, tensor, *rest: tensor)
    patch.setattr(dist, "all_gather_object", lambda found, value: found.__setitem__(slice(None), [value] * count))
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda *group: count)
    patch.setattr(dist, "get_rank", lambda *group: 0)
    return seen


def _of_one_device(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checked(tensors: Sequence[Tensor], *args: Any, **options: Any) -> Tensor:
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices}")
        return function(tensors, *args, **options)

    return checked


def _give_gradients(loss: Tensor) -> None:
    """`Tensor.backward` without its arithmetic, which asks the driver: every leaf of the graph gets a gradient."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
            for hook in (node.variable._post_accumulate_grad_hooks or {}).values():
                hook(node.variable)


def _replace_parameters(network: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` by replacing: fake tensors cannot be swapped in place."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                with torch.no_grad():
                    module._parameters[name] = nn.Parameter(function(weight), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return network
