"""`load` recognises every system, by its metadata or by its keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model import CheckpointError, load
from model.checkpoint import save_checkpoint
from model.clib_fiqa import ClibFiqa
from model.clip import CLIP, ModifiedResNet, TextShape
from model.confidence import ConfidenceMLP
from model.face_trunk import FaceTrunk
from model.iresnet import ArcFaceHeader, IResNet
from model.loading import SYSTEMS as KNOWN_SYSTEMS
from model.mobilefacenet import FactorNetwork, MobileFaceNetEmbedding, TrunkShape
from model.preprocessing import Preprocessing
from model.prompts import prompts_hash
from model.weights import WeightsError


def small_clip(text: bool = True) -> CLIP:
    return CLIP(ModifiedResNet((1, 1, 1, 1), 8, 16, 4, image_size=64), TextShape(64, 1, 1) if text else None)


SYSTEMS = {
    "clib-fiqa": lambda: small_clip(),
    "cr-fiqa": lambda: IResNet((1, 1, 1, 1), (4, 8, 8, 8), 16),
    "mfn": lambda: FactorNetwork(TrunkShape((8, 8, 8), (1, 1, 1), (8, 8, 8), (8, 8, 8), 8, 8), 8),
    "face-trunk": lambda: FaceTrunk(8, [(8, 8)] * 15, 8, 8),
    "mobilefacenet": lambda: MobileFaceNetEmbedding(TrunkShape((8, 8, 8), (1, 1, 1), (8, 8, 8), (8, 8, 8), 8, 8), 8),
    "confidence-mlp": ConfidenceMLP,
    "arcface-header": lambda: ArcFaceHeader(8, 3),
}
CLASSES = {
    "clib-fiqa": ClibFiqa,
    "cr-fiqa": IResNet,
    "mfn": FactorNetwork,
    "face-trunk": FaceTrunk,
    "mobilefacenet": MobileFaceNetEmbedding,
    "confidence-mlp": ConfidenceMLP,
    "arcface-header": ArcFaceHeader,
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("named", [True, False], ids=["metadata", "keys"])
def test_every_system_is_recognised(tmp_path: Path, system: str, named: bool) -> None:
    network: nn.Module = SYSTEMS[system]()
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, network.state_dict(), {"system": system, "note": "kept"} if named else {})
    loaded = load(path)
    assert type(loaded) is CLASSES[system]
    assert not loaded.training
    assert loaded.metadata == ({"system": system, "note": "kept"} if named else {})
    own = loaded.clip if system == "clib-fiqa" else loaded
    for key, tensor in network.state_dict().items():
        assert torch.equal(own.state_dict()[key], tensor)


def test_face_trunk_as_image_tower_is_recognised(tmp_path: Path) -> None:
    clip = CLIP(FaceTrunk(8, [(8, 8)] * 15, 8, 8), None)
    network = ClibFiqa(clip, nn.functional.normalize(torch.randn(360, 8), dim=1))
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, network.to_tensors(), {"prompts": prompts_hash()})
    loaded = load(path)
    assert type(loaded) is ClibFiqa
    faces = torch.randn(2, 3, 112, 112)
    assert torch.equal(loaded(faces), network.eval()(faces))


def test_clip_itself_when_the_metadata_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.safetensors", small_clip().state_dict(), {"system": "clip"})
    assert type(load(tmp_path / "weights.safetensors")) is CLIP


@pytest.mark.parametrize("system", ["cr-fiqa", "mfn", "face-trunk"])
def test_preprocessing_of_the_metadata(tmp_path: Path, system: str) -> None:
    custom = Preprocessing(112, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, SYSTEMS[system]().state_dict(), {"preprocessing": custom.to_json()})
    assert load(path).preprocessing == custom


def test_unknown_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, {"strange.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=rf"{path}: the keys \(strange.weight, …\) belong to none of clib-fiqa"):
        load(path)
    save_checkpoint(path, {"strange.weight": torch.zeros(1)}, {"system": "strange"})
    with pytest.raises(CheckpointError, match="system 'strange' is none of"):
        load(path)


def test_misfit_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, ConfidenceMLP().state_dict() | {"extra": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=rf"{path}: .* does not fit ConfidenceMLP: 1 unexpected \(extra\)"):
        load(path)


def test_unknown_name() -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load("no-such-model")


def test_loading_imports_nothing_heavy() -> None:
    """Scoring starts in seconds: the tokenizer, torchvision and the compiler stay out."""
    code = (
        "import sys, torch, tempfile, pathlib, model\n"
        "from model.checkpoint import save_checkpoint\n"
        "from model.face_trunk import FaceTrunk\n"
        "path = pathlib.Path(tempfile.mkdtemp()) / 'a.safetensors'\n"
        "save_checkpoint(path, FaceTrunk().state_dict(), {})\n"
        "model.load(path)\n"
        "print([name for name in ('ftfy', 'regex', 'torchvision', 'torch._dynamo', 'cv2') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("preprocessing", ["[]", '{"size": 1000000, "mean": [0,0,0], "std": [1,1,1]}'])
def test_damaged_metadata_names_the_file(tmp_path: Path, preprocessing: str) -> None:
    tensors = {"fc3.weight": torch.zeros(1, 4)}
    save_checkpoint(tmp_path / "odd.safetensors", tensors, {"system": "face-trunk", "preprocessing": preprocessing})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        load(tmp_path / "odd.safetensors")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """They would give scores: a ReLU makes 0 of NaN."""
    tensors = SYSTEMS["confidence-mlp"]().state_dict()
    tensors["fc1.weight"][0, 0] = torch.nan
    save_checkpoint(tmp_path / "odd.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: fc1\.weight holds NaN; expected weights"):
        load(tmp_path / "odd.safetensors")


def test_shapes_that_make_no_network_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    for system in KNOWN_SYSTEMS:
        for tensors in ({"w": torch.zeros(1)}, {"conv1.weight": torch.zeros(0, 3), "fc.weight": torch.zeros(())}):
            save_checkpoint(path, tensors, {"system": system, "vision_heads": "x"})
            with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
                load(path)
