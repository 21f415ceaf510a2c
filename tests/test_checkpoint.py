"""Every kind of checkpoint file reads, and nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_tensors import recipe_tensors
from torch import Tensor, nn

from model.checkpoint import CheckpointError, load_strict, read_checkpoint, save_checkpoint, sha256_of
from model.clip import CLIP, ModifiedResNet, TextShape


class Weapon:
    """Unpickling it creates a file: what a hostile checkpoint would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "steps": torch.tensor(7)}


def test_safetensors_round_trip(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "new folder" / "weights.safetensors"
    tensors["image.weight"] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_checkpoint(path, tensors, {"system": "mfn", "note": "ünïcode"})
    found, metadata = read_checkpoint(path)
    assert_same(found, tensors)
    assert metadata == {"system": "mfn", "note": "ünïcode"}
    assert os.listdir(path.parent) == [path.name]


def test_failed_save_keeps_the_old_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, tensors, {})
    before = sha256_of(path)
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_checkpoint(path, {"one": shared, "two": shared}, {})
    assert sha256_of(path) == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts(tmp_path: Path, tensors: dict[str, Tensor], zipped: bool, prefix: str) -> None:
    path = tmp_path / "weights.pth"
    content = {prefix + key: tensor for key, tensor in tensors.items()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found, metadata = read_checkpoint(path)
    assert_same(found, tensors)
    assert metadata == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.tensor([0.5, 2.0], dtype=dtype), "steps": torch.tensor(3)}, path)
    found, _ = read_checkpoint(path)
    assert found["weight"].dtype == torch.float32
    assert found["weight"].tolist() == [0.5, 2.0]
    assert found["steps"].dtype == torch.int64


def test_only_a_common_module_prefix_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert read_checkpoint(path)[0].keys() == {"module.a", "b"}


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "was here"
    torch.save({"weight": torch.zeros(1), "weapon": Weapon(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run code and are never loaded"):
        read_checkpoint(path)
    assert not mark.exists()


def test_bare_pickle_is_never_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pkl", tmp_path / "was here"
    path.write_bytes(pickle.dumps(Weapon(mark), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [([torch.zeros(1)], "list"), ({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, "epoch, state_dict")],
)
def test_other_contents_are_named(tmp_path: Path, content: Any, named: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"no plain state dict of tensors: it holds {named}"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80", b"<!DOCTYPE html><p>Not found", b"version https://git-lfs"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "torchscript"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if kind == "safetensors":
        save_checkpoint(whole, tensors, {})
    elif kind == "torchscript":
        save_archive(nn.Linear(3, 2), whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for size in np.linspace(0, len(content) - 1, 25, dtype=int):
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(cut)


def test_damaged_archives_give_nothing_but_checkpoint_errors(tmp_path: Path) -> None:
    """Random bytes in the pickle of an archive, with a valid check sum."""
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    save_archive(nn.Linear(3, 2), whole)
    name = pickle_name(whole)
    with zipfile.ZipFile(whole) as archive:
        content = archive.read(name)
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.integers(len(content), size=60):
        changed = bytearray(content)
        changed[position] = generator.integers(256)
        replace_member(whole, damaged, name, bytes(changed))
        try:
            read_checkpoint(damaged)
        except CheckpointError:
            refused += 1
    assert refused > 20


def pickle_name(archive: Path) -> str:
    with zipfile.ZipFile(archive) as opened:
        return next(name for name in opened.namelist() if name.endswith("/data.pkl"))


def save_archive(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's file is in it all the same
        torch.jit.save(torch.jit.script(module.eval()), path)


def replace_member(source: Path, target: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, content if item.filename == name else old.read(item))


@pytest.fixture(scope="module")
def clip_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive made like OpenAI's: both towers traced, half precision, three scalars beside the weights."""
    torch.manual_seed(0)
    clip = CLIP(ModifiedResNet((1, 1, 1, 1), 8, 16, 4, image_size=64), TextShape(64, 2, 1, 20, 100)).eval().half()
    for name, value in {"input_resolution": 64, "context_length": 20, "vocab_size": 100}.items():
        clip.register_buffer(name, torch.tensor(value))
    inputs = {
        "encode_image": torch.zeros(1, 3, 64, 64, dtype=torch.half),
        "encode_text": torch.arange(20)[None],
    }
    path = tmp_path_factory.mktemp("archive") / "RN.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace_module(clip, inputs), path)
    return path


def test_torchscript_archive(clip_archive: Path) -> None:
    found, _ = read_checkpoint(clip_archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(clip_archive, map_location="cpu").state_dict()
    assert all(expected.pop(name) > 0 for name in ("input_resolution", "context_length", "vocab_size"))
    assert {key: tensor.dtype for key, tensor in expected.items()}["visual.conv1.weight"] == torch.half
    assert_same(found, {key: t.float() if t.is_floating_point() else t for key, t in expected.items()})
    clip = CLIP.from_tensors(found)
    assert clip.preprocessing.size == 64
    assert clip.encode_image(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_torchscript_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3)
    convolution = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    for index, module in enumerate((nn.Sequential(layer, layer), convolution, Buffers(torch.arange(12.0)))):
        path = tmp_path / f"{index}.pt"
        save_archive(module, path)
        assert_same(read_checkpoint(path)[0], module.state_dict())


class Buffers(nn.Module):
    """A transposed view in the middle of its storage, nothing at all, and attributes of other types."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer("view", base[2:8].view(2, 3).T)
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("truth", torch.tensor([True, False]))
        self.sizes: list[int] = [1, 2]
        self.names: dict[str, int] = {"a": 1}
        self.scales: tuple[float, float] = (0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[0] + self.sizes[0] + self.names["a"] + self.view.sum()


def test_code_in_a_torchscript_archive_is_never_run(clip_archive: Path, tmp_path: Path) -> None:
    mark, hostile = tmp_path / "was here", tmp_path / "hostile.pt"
    content = pickle.dumps({"visual": Weapon(mark)}, protocol=2)
    replace_member(clip_archive, hostile, pickle_name(clip_archive), content)
    with pytest.raises(CheckpointError, match=r"asks for \w+\.mkdir, which is not needed to read tensors"):
        read_checkpoint(hostile)
    assert not mark.exists()


def test_published_sizes_through_every_kind_of_file(tmp_path: Path, golden: Path) -> None:
    tensors = recipe_tensors(golden / "clip_tiny_keys.json")
    torch.save({f"module.{key}": tensor.half() for key, tensor in tensors.items()}, tmp_path / "a.pth")
    save_checkpoint(tmp_path / "a.safetensors", tensors, {})
    for name, tolerance in (("a.pth", 1e-3), ("a.safetensors", 0.0)):
        found = CLIP.from_tensors(read_checkpoint(tmp_path / name)[0]).state_dict()
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[key], tensor, atol=tolerance, rtol=tolerance, check_dtype=True)


def test_load_strict_names_every_problem() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, {"weight": torch.zeros(4, 3), "scale": torch.zeros(1)}, "file.pth")
    assert str(caught.value) == (
        "file.pth does not fit Linear: 1 missing (bias); 1 unexpected (scale); "
        "1 misshapen (weight (4, 3) instead of (2, 3))"
    )
    assert torch.equal(module.weight, before)


def test_long_lists_of_keys_are_cut() -> None:
    extra = {f"head.{index}": torch.zeros(1) for index in range(20)}
    with pytest.raises(CheckpointError, match=r"20 unexpected \(head\.0, .*, and 12 more\)"):
        load_strict(nn.Linear(3, 2), extra, "file.pth")


def saved(path: Path, content: object, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def packed_4_bits() -> Tensor:
    return torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(3, dtype=torch.complex64), "a.weight is a complex64 tensor"),
        (lambda: torch.zeros(3).to_sparse(), "a.weight is a sparse tensor"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8), "a.weight is a qint8 tensor"),
        (lambda: torch.zeros(3, dtype=torch.float8_e4m3fn), "a.weight is a float8_e4m3fn tensor"),
        (packed_4_bits, "a.weight is a float4_e2m1fn_x2 tensor"),
        (lambda: torch.zeros(1).expand(1_000_000), "expanded view of fewer numbers"),
        (lambda: torch.zeros(0, 10**12), "expanded view of fewer numbers"),
    ],
)
def test_tensors_of_unusual_kinds_are_refused_with_the_name_of_the_file(
    tmp_path: Path, make: Any, message: str
) -> None:
    path = saved(tmp_path / "odd.pth", {"a.weight": make()})
    with pytest.raises(CheckpointError, match=rf"odd\.pth.*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", [7, None, ("a",)])
def test_a_key_that_is_no_text(tmp_path: Path, key: object) -> None:
    with pytest.raises(CheckpointError, match=r"odd\.pth is no plain state dict"):
        read_checkpoint(saved(tmp_path / "odd.pth", {key: torch.zeros(1)}))


def test_one_storage_under_many_keys_is_refused(tmp_path: Path) -> None:
    numbers = torch.randn(100_000)
    with pytest.raises(CheckpointError, match="its tensors take 40,000,000 bytes"):
        read_checkpoint(saved(tmp_path / "odd.pth", {f"w{i}": numbers for i in range(100)}))
    assert len(read_checkpoint(saved(tmp_path / "tied.pth", {"a": numbers, "b": numbers}))[0]) == 2


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"")
        archive.writestr("bomb/data/0", bytes(40_000_000))
    with pytest.raises(CheckpointError, match=r"bomb\.pth unpacks from"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_a_torchscript_tensor_of_more_numbers_than_its_storage(tmp_path: Path) -> None:
    from model.torchscript import _rebuild_tensor

    with pytest.raises(pickle.UnpicklingError, match="made of 1 numbers"):
        _rebuild_tensor(torch.zeros(1), 0, (10**9,), (0,))


def test_weights_of_whole_numbers_do_not_load_as_floats() -> None:
    network = nn.Linear(2, 2)
    tensors = {"weight": torch.ones(2, 2, dtype=torch.int64), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"1 of another type \(weight torch.int64 instead of torch.float32\)"):
        load_strict(network, tensors, "file")
