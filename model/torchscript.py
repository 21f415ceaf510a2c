"""The tensors of a TorchScript archive, read from the zip without running or compiling the archive's code.

An archive holds a pickle of the module tree, `data.pkl`, whose tensors refer to raw storages, `data/0`, `data/1`, ….
The pickle may name any function; this reader knows the handful that describe tensors and modules and refuses all
others: a hostile file can waste memory, and nothing else.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive; `torch.save` writes the same layout, but no constants."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name.

    Raises pickle.UnpicklingError when the pickle asks for anything but tensors and modules, and whatever zipfile and
    torch raise for a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        pickle_name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(pickle_name) as file:
            return dict(_named_tensors(_ModuleUnpickler(file, archive, pickle_name.removesuffix(".pkl")).load()))


class _ScriptModule:
    """Stands for any module class of the archive: pickle fills its `__dict__` with the attributes."""


class _ModuleUnpickler(pickle.Unpickler):
    """Builds modules without behaviour, and tensors from the archive's storages."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Callable[..., Any] | torch.dtype:
        if module.startswith("__torch__"):
            return _ScriptModule
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "restore_type_tag"): _first,
            ("torch.jit._pickle", "build_intlist"): _first,
            ("torch.jit._pickle", "build_doublelist"): _first,
            ("torch.jit._pickle", "build_boollist"): _first,
            ("torch.jit._pickle", "build_tensorlist"): _first,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the archive asks for {module}.{name}, which is not needed to read tensors")
        return known[module, name]

    def persistent_load(self, reference: Any) -> Tensor:
        """`("storage", dtype, name, device, elements)` -> all elements of that storage, 1-D."""
        _, dtype, name, _, _ = reference
        content = bytearray(self.archive.read(f"{self.folder}/{name}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > len(storage):   # before it is made
        raise pickle.UnpicklingError(f"a tensor {tuple(size)} is made of {len(storage)} numbers")
    return storage.as_strided(size, stride, offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


def _named_tensors(module: _ScriptModule, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _named_tensors(value, f"{prefix}{name}.")
