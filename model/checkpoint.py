"""Reading and writing checkpoints without ever running what is inside them.

Three kinds of file hold the weights of this project's systems, told apart by their first bytes:

- safetensors, which holds nothing but tensors and text (ours);
- a pickled state dict (`.pth`, `.pt`), read with torch's `weights_only`, which builds tensors and refuses the rest;
  of a training checkpoint (a dict with the state dict under `model`, as DifFIQA's) only that state dict is taken;
- a TorchScript archive (OpenAI's `RN50.pt`). `torch.jit.load` would run the archive's own `__setstate__`, so the
  tensors are read from the zip by `torchscript.py` instead.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .files import replacing
from .torchscript import is_torchscript, read_torchscript

Module = TypeVar("Module", bound=nn.Module)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
COPIES = 4  # of the bytes of a file that its tensors may take: weights can be tied
CODE_BYTES = 16_000_000  # and the code of a TorchScript archive, which is compressed
CHECKSUM = "crc32"  # in the metadata of a file that is checked when it is read
BLOCK_BYTES = 1 << 20
LISTED_KEYS = 8  # an error names so many keys of a kind, then says how many more there are
TORCHSCRIPT_SCALARS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives beside the weights


class CheckpointError(ValueError):
    """A file that is no checkpoint, or weights that do not fit the network."""


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint by key, on the CPU, half precision widened to float32; and its metadata.

    A `module.` before every key (left by data-parallel training) is dropped. Only safetensors have metadata.
    Raises FileNotFoundError, or CheckpointError when the file is damaged, holds more than tensors, tensors of unusual
    types (complex, quantised, sparse, of 4 or 8 bits), or tensors that are larger than the file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(9)
    metadata: dict[str, str] = {}
    if head[8:] == b"{":
        tensors, metadata = _read_safetensors(path)
    elif head[:2] == b"PK":
        _require_no_bomb(path)
        tensors = _read_torchscript(path) if _is_torchscript(path) else _read_state_dict(path)
    elif head[:1] == b"\x80":
        tensors = _read_state_dict(path)
    else:
        raise CheckpointError(
            f"{path} is no checkpoint: expected safetensors, a PyTorch state dict or a TorchScript archive, "
            f"found a file that begins with {head!r}"
        )
    _require_plain(path, tensors)
    return {key: _widen(tensor) for key, tensor in _without_module_prefix(tensors).items()}, metadata


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], checked: bool = False
) -> None:
    """Write safetensors atomically; with a checksum in the metadata, if it is to be `checked` when it is read."""
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(_with_metadata_in_order(save(on_cpu, dict(metadata)), checked))


def _with_metadata_in_order(content: bytes, checked: bool) -> bytes:
    """safetensors writes the metadata in a random order; in that of their keys, equal weights are equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    if checked:
        header["__metadata__"][CHECKSUM] = _checksum(header, zlib.crc32(memoryview(content)[end:]))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def _checksum(header: Mapping[str, Any], of_data: int) -> str:
    """The CRC-32 of a header of safetensors, without the checksum that it may hold, behind that of the tensors."""
    metadata = {key: text for key, text in header["__metadata__"].items() if key != CHECKSUM}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return str(zlib.crc32(text.encode(), of_data))


def _require_checksum(path: Path) -> None:
    """Raise CheckpointError when a safetensors file is not what its own checksum says."""
    with open(path, "rb") as file:
        header, of_data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), 0
        while block := file.read(BLOCK_BYTES):
            of_data = zlib.crc32(block, of_data)
    if header["__metadata__"][CHECKSUM] != _checksum(header, of_data):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `tensors` into `module`. Raises CheckpointError with every key that is missing, unexpected or misshapen,
    or holds whole numbers in place of floating-point ones."""
    own = module.state_dict()
    problems = [
        *_listed("missing", own.keys() - tensors.keys()),
        *_listed("unexpected", tensors.keys() - own.keys()),
        *_listed(
            "misshapen",
            {
                f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
                for key in own.keys() & tensors.keys()
                if own[key].shape != tensors[key].shape
            },
        ),
        *_listed(
            "of another type",
            {
                f"{key} {tensors[key].dtype} instead of {own[key].dtype}"
                for key in own.keys() & tensors.keys()
                if own[key].is_floating_point() and not tensors[key].is_floating_point()
            },
        ),
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: " + "; ".join(problems))
    module.load_state_dict(dict(tensors))


def build(make: Callable[[], Module], tensors: Mapping[str, Tensor]) -> Module:
    """The network that `make` returns, filled with `tensors`, in eval mode; no time is spent on random weights."""
    with _NoInitialisation():
        network = make()
    load_strict(network, tensors, "the state dict")
    return network.eval()


def size_of(tensors: Mapping[str, Tensor], key: str, axis: int = 0) -> int:
    """One size of one tensor, from which hyper-parameters are read; CheckpointError when it is not there."""
    if key not in tensors:
        raise CheckpointError(f"the key {key} is missing, without which the network's size is unknown")
    if tensors[key].ndim <= axis:
        raise CheckpointError(f"{key} has the shape {tuple(tensors[key].shape)}: expected at least {axis + 1} axes")
    return tensors[key].shape[axis]


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different indices follow `prefix` in the keys: the depth of a stack of blocks."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def sha256_of(path: str | Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _NoInitialisation(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` do nothing, so that new parameters hold whatever the memory held."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if CHECKSUM in metadata:
                _require_checksum(path)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete safetensors ({error}): get it again") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        with open(path, "rb") as file:  # a name that ends in .safetensors would make it another format for torch
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects beside tensors, which could run code and are never loaded: "
            "expected a plain state dict"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is damaged or incomplete ({error}): get it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    others = [] if isinstance(content, Mapping) else [type(content).__name__]
    pairs = [] if others else content.items()
    others += [str(key) for key, value in pairs if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise CheckpointError(f"{path} is no plain state dict of tensors: it holds {', '.join(others[:LISTED_KEYS])}")
    return dict(content)


def _require_no_bomb(path: Path) -> None:
    """The tensors in a zip are not compressed (TorchScript compresses its code), and no two members are the same."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, RuntimeError, ValueError, struct.error) as error:  # RuntimeError: a newer kind of zip
        raise CheckpointError(f"{path} is damaged or incomplete ({error}): get it again") from error
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > COPIES * size + CODE_BYTES:
        raise CheckpointError(f"{path} unpacks from {size:,} to {total:,} bytes: expected weights, uncompressed")


def _require_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for tensors of unusual kinds, and for those that name the same bytes again and again."""
    size = path.stat().st_size
    for key, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.") if tensor.layout == torch.strided else "sparse"
        if tensor.layout != torch.strided or tensor.dtype not in TYPES or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {key} is a {kind} tensor; expected floating-point or whole numbers")
        if tensor.nbytes > tensor.untyped_storage().nbytes() or max(tensor.shape, default=0) > size:
            raise CheckpointError(
                f"{path}: {key} {tuple(tensor.shape)} is an expanded view of fewer numbers; expected weights"
            )
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > COPIES * size:
        raise CheckpointError(f"{path}: its tensors take {total:,} bytes and the file has {size:,}; expected weights")


def _is_torchscript(path: Path) -> bool:
    try:
        return is_torchscript(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or incomplete: get it again") from error


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    try:
        tensors = read_torchscript(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is a damaged TorchScript archive ({error}): get it again") from error
    return {key: tensor for key, tensor in tensors.items() if key not in TORCHSCRIPT_SCALARS}


def _without_module_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = tensors and all(key.startswith("module.") for key in tensors)
    return with_prefix(tensors, "module.") if wrapped else tensors


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _listed(kind: str, keys: set[str]) -> list[str]:
    """`3 missing (a, b, c)`, or nothing when there are none."""
    if not keys:
        return []
    more = f", and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return [f"{len(keys)} {kind} ({', '.join(sorted(keys)[:LISTED_KEYS])}{more})"]
