"""The face trunk against its published ONNX file (needs ../shared), and its family of widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import recipe
import torch
from recipe_tensors import golden_shapes, relative_error, shapes_of

from model.face_trunk import FaceTrunk
from model.loading import load


def test_default_is_the_published_size(golden: Path) -> None:
    assert shapes_of(FaceTrunk()) == golden_shapes(golden / "face_trunk_keys.json")


@torch.no_grad()
def test_same_embeddings_as_the_onnx_file(shared: Path) -> None:
    import onnxruntime

    network = load(shared / "data" / "fr" / "mobilefacenet_foamliu.safetensors")
    assert isinstance(network, FaceTrunk)
    faces = np.stack([recipe.mirror_image(seed) for seed in range(4)])
    faces = network.preprocessing.normalise(torch.from_numpy(faces))
    session = onnxruntime.InferenceSession(shared / "data" / "fr" / "mobilefacenet_foamliu.onnx")
    (expected,) = session.run(None, {session.get_inputs()[0].name: faces.contiguous().numpy()})
    assert relative_error(network(faces), expected) < 1e-4


@torch.no_grad()
def test_any_width_loads() -> None:
    torch.manual_seed(0)
    blocks = [(24, 16)] * 5 + [(32, 24)] * 7 + [(40, 24)] * 3
    small = FaceTrunk(stem=16, blocks=blocks, last=48, output_dim=20, image_size=96).eval()
    loaded = FaceTrunk.from_tensors(small.state_dict())
    faces = torch.randn(2, 3, 96, 96)
    assert loaded.preprocessing.size == 96
    assert torch.equal(loaded(faces), small(faces))
    assert loaded(faces).shape == (2, 20)
