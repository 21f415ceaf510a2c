"""Embeddings of every kind of FR model: ONNX, checkpoints, dlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from recipe_tensors import recipe_tensors
from skimage.data import astronaut

from faces.align import align_face
from faces.dlib_models import dlib_file, face_detector, import_dlib, landmark_predictor
from labels.recognition import DLIB_FILE, load_recognizer
from model.checkpoint import CheckpointError, save_checkpoint
from model.dlib_resnet import read_dlib_resnet
from model.face_trunk import FaceTrunk
from model.iresnet import IResNet
from model.preprocessing import FACE_PREPROCESSING

SIZE, WIDTH = 8, 5
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, WIDTH)).astype(np.float32)


@pytest.fixture
def faces() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def linear_model(
    path: Path, batch: int | str = "n", shape: tuple = (3, SIZE, SIZE), rows: int = -1, kind: int = TensorProto.FLOAT
) -> Path:
    """An ONNX file whose embedding is a product with WEIGHT; `rows` is the batch that its inner reshape has."""
    weight = WEIGHT.astype(helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "flat"], ["y"]), helper.make_node("MatMul", ["y", "weight"], ["e"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info("e", kind, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([rows, len(WEIGHT)]), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def expected(faces: np.ndarray, mean: float | tuple = 0.5, std: float | tuple = 0.5) -> np.ndarray:
    return ((faces / 255 - mean) / std).transpose(0, 3, 1, 2).reshape(len(faces), -1) @ WEIGHT


@pytest.mark.parametrize("batch", ["n", 1])
def test_onnx_is_normalised_and_runs_whatever_its_batch(tmp_path: Path, faces: np.ndarray, batch: int | str) -> None:
    recognizer = load_recognizer(linear_model(tmp_path / "fr.onnx", batch))
    assert (recognizer.name, recognizer.width, recognizer.preprocessing.size) == ("fr.onnx", WIDTH, SIZE)
    np.testing.assert_allclose(recognizer.embed(faces), expected(faces), rtol=1e-4, atol=1e-4)


def test_onnx_takes_mean_std_and_size_of_the_call(tmp_path: Path, faces: np.ndarray) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    model = linear_model(tmp_path / "fr.onnx", shape=(3, "h", "w"))
    recognizer = load_recognizer(model, mean, std, SIZE)
    np.testing.assert_allclose(recognizer.embed(faces), expected(faces, mean, std), rtol=1e-4, atol=1e-4)


def test_onnx_of_half_precision_and_with_channels_last(tmp_path: Path, faces: np.ndarray) -> None:
    half = load_recognizer(linear_model(tmp_path / "half.onnx", kind=TensorProto.FLOAT16))
    np.testing.assert_allclose(half.embed(faces), expected(faces), rtol=0.05, atol=0.1)
    last = load_recognizer(linear_model(tmp_path / "last.onnx", shape=(SIZE, SIZE, 3)))
    np.testing.assert_allclose(
        last.embed(faces), ((faces / 255 - 0.5) / 0.5).reshape(len(faces), -1) @ WEIGHT, rtol=1e-4, atol=1e-4
    )


def test_onnx_leaves_the_floating_point_mode_of_the_process_alone(tmp_path: Path) -> None:
    """In a process of its own, since onnxruntime would change the mode once and for all."""
    model = linear_model(tmp_path / "fr.onnx")
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np, torch
from labels.recognition import load_recognizer
def denormals():
    tiny = np.full(64, 1e-30, np.float32)
    return bool((tiny * np.float32(1e-10) > 0).all()), bool((torch.from_numpy(tiny) * 1e-10 > 0).all())
before = denormals()
recognizer = load_recognizer({str(model)!r})
recognizer.embed(np.zeros((2, {SIZE}, {SIZE}, 3), np.uint8))
print(before, denormals())
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "(True, True) (True, True)\n"


def test_onnx_still_counts_denormal_numbers_as_zero(tmp_path: Path) -> None:
    """It is what makes networks fast whose activations become tiny."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "flat"], ["y"]), helper.make_node("Mul", ["y", "tiny"], ["e"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.float32([1e-39]), "tiny"),
            numpy_helper.from_array(np.array([-1, len(WEIGHT)]), "flat"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "t.onnx")
    assert not load_recognizer(tmp_path / "t.onnx").embed(np.full((2, SIZE, SIZE, 3), 255, np.uint8)).any()


def test_onnx_that_is_no_fr_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be free, or 1"):   # takes any batch, but its reshape holds one image
        load_recognizer(linear_model(tmp_path / "one.onnx", rows=1))
    with pytest.raises(ValueError, match="were expected"):
        load_recognizer(linear_model(tmp_path / "grey.onnx", shape=(1, SIZE, SIZE)))
    with pytest.raises(ValueError, match="a size of 112 was asked for"):
        load_recognizer(linear_model(tmp_path / "fr.onnx"), size=112)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match="no ONNX model"):
        load_recognizer(tmp_path / "text.onnx")


def test_onnx_that_fails_in_the_middle_of_a_run_is_no_wrong_call(tmp_path: Path, faces: np.ndarray) -> None:
    recognizer = load_recognizer(linear_model(tmp_path / "two.onnx", rows=2))   # of two images, as those it is tried on
    with pytest.raises(RuntimeError, match=r"two\.onnx fails on"):
        recognizer.embed(faces)


def test_files_that_are_missing_or_something_else_are_refused(tmp_path: Path, golden: Path) -> None:
    with pytest.raises(OSError, match="no such file"):
        load_recognizer(tmp_path / "absent.onnx")
    save_checkpoint(tmp_path / "mfn.safetensors", recipe_tensors(golden / "mfn_keys.json"), {})
    with pytest.raises(ValueError, match="holds a FactorNetwork"):
        load_recognizer(tmp_path / "mfn.safetensors")
    with pytest.raises(ValueError, match="dlib"):
        load_recognizer("dlib", mean=(0, 0, 0))


def test_iresnet_gives_the_published_embeddings(tmp_path: Path, golden: Path) -> None:
    save_checkpoint(tmp_path / "r50.safetensors", recipe_tensors(golden / "iresnet50_qs_keys.json"), {})
    recognizer, numbers = load_recognizer(tmp_path / "r50.safetensors"), np.load(golden / "iresnet50_forward.npz")
    assert recognizer.preprocessing == FACE_PREPROCESSING
    embeddings = recognizer.embed(numbers["images"])
    assert np.abs(embeddings - numbers["features"]).max() < 1e-4 * np.abs(numbers["features"]).max()


@pytest.mark.parametrize("network", [IResNet((1, 1, 1, 1), (8, 8, 16, 16), 32), FaceTrunk(last=64)])
def test_bf16_and_folding_hardly_change_embeddings(tmp_path: Path, network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for module in network.modules():   # batch norms that do something, as after training
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    save_checkpoint(tmp_path / "fr.safetensors", network.state_dict(), {})
    images = np.random.default_rng(2).integers(0, 256, (4, 112, 112, 3), np.uint8)
    exact, half = (load_recognizer(tmp_path / "fr.safetensors", precision=p).embed(images) for p in ("fp32", "bf16"))
    with torch.no_grad():
        output = network.eval()(network.preprocessing.normalise(torch.from_numpy(images)))
    plain = (output[0] if isinstance(output, tuple) else output).numpy()
    np.testing.assert_allclose(exact, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
    assert exact.dtype == half.dtype == np.float32
    assert cosine(exact, half).min() > 0.995


def test_dlibs_network_gives_what_dlib_gives() -> None:
    chips = np.stack([cv2.resize(astronaut()[:300, :300], (150, 150)), np.full((150, 150, 3), 40, np.uint8)])
    network = read_dlib_resnet(dlib_file(DLIB_FILE))
    with torch.no_grad():
        ours = network(network.preprocessing.normalise(torch.from_numpy(chips))).numpy()
    dlibs = import_dlib().face_recognition_model_v1(str(dlib_file(DLIB_FILE))).compute_face_descriptor(list(chips))
    np.testing.assert_allclose(ours, np.array(dlibs), atol=2e-6)


def test_other_files_are_not_taken_for_dlibs_network(tmp_path: Path) -> None:
    (tmp_path / "other.dat").write_bytes(b"\x05con_4" + bytes(100))
    with pytest.raises(CheckpointError, match="is not dlib's"):
        read_dlib_resnet(tmp_path / "other.dat")


def test_dlib_sees_an_aligned_crop_as_its_own_chip() -> None:
    """The crop's embedding is near to the one of the chip that dlib cuts out of the photograph with its landmarks."""
    photo = np.ascontiguousarray(astronaut()[:320, 80:400])
    landmarks = landmark_predictor()(photo, face_detector()(photo)[0])
    network = read_dlib_resnet(dlib_file(DLIB_FILE))
    chip = torch.from_numpy(import_dlib().get_face_chip(photo, landmarks, 150, 0.25))
    with torch.no_grad():
        own = network(network.preprocessing.normalise(chip[None]))[0].numpy()
    crop, recognizer = align_face(photo), load_recognizer("dlib")
    ours, upside_down = recognizer.embed(np.stack([crop, crop[::-1]]))
    assert ours.shape == (recognizer.width,)
    assert np.linalg.norm(ours - own) < 0.4 < 0.6 < np.linalg.norm(upside_down - own)   # dlib calls 0.6 one person


def test_given_models_are_recognised(shared: Path) -> None:
    foamliu, trunk, plugin = (
        load_recognizer(shared / "data/fr" / name)
        for name in ("mobilefacenet_foamliu.onnx", "mobilefacenet_foamliu.safetensors", "faceplugin_fr_feature.onnx")
    )
    assert foamliu.preprocessing == trunk.preprocessing
    assert foamliu.preprocessing.mean == (0.485, 0.456, 0.406)
    assert plugin.preprocessing.mean == (127 / 255,) * 3
    crops = np.stack([align_face(astronaut()), np.full((112, 112, 3), 90, np.uint8)])
    assert cosine(foamliu.embed(crops), trunk.embed(crops)).min() > 0.99999
    assert plugin.embed(crops).shape == (2, 512)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
