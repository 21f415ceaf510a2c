"""Reading the trunk of MediaPipe's face mesh from its published file in TensorFlow Lite's format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointError
from model.face_points import FaceMeshTrunk

COMMON = 74  # operators before the two branches, of which the first one says whether there is a face
MESH_BRANCH = (75, 77, 82, 84, 86, 88, 90, 94)  # operators with weights of the other one, whose points are of use
CONV_2D, DEPTHWISE_CONV_2D, PRELU = 3, 4, 54  # codes of operators


@torch.no_grad()
def read_face_mesh(path: Path) -> FaceMeshTrunk:
    """The trunk of `face_landmark.tflite` (468 points, 192x192 pixels), in eval mode.

    Needs the package tflite. Raises CheckpointError for another network.
    """
    trunk = FaceMeshTrunk()
    try:
        operators = list(_weights_of(path))
        chosen = [weights for code, weights in operators[:COMMON] if code in (CONV_2D, DEPTHWISE_CONV_2D, PRELU)]
        chosen += [operators[i][1] for i in MESH_BRANCH]
        layers = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d | nn.PReLU)]
        for layer, weights in zip(layers, chosen, strict=True):
            _fill(layer, weights)
    except (IndexError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not the published network of MediaPipe's face mesh: {error}") from error
    return trunk.eval()


def _weights_of(path: Path) -> Iterator[tuple[int, list[Tensor]]]:
    """The code and the constant inputs of each operator of a file of TensorFlow Lite's format."""
    import tflite

    model: Any = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        tensors = [graph.Tensors(j) for j in operator.InputsAsNumpy()[1:]]
        buffers = [model.Buffers(tensor.Buffer()).DataAsNumpy() for tensor in tensors]
        yield max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), [
            torch.from_numpy(buffer.view(np.float32).reshape(tensor.ShapeAsNumpy()).copy())
            for tensor, buffer in zip(tensors, buffers, strict=True)
            if tensor.Type() == tflite.TensorType.FLOAT32 and not isinstance(buffer, int)
        ]


def _fill(layer: nn.Conv2d | nn.PReLU, weights: list[Tensor]) -> None:
    if isinstance(layer, nn.PReLU):
        values = [weights[0].flatten()]
    else:  # (out, height, width, in) of a convolution, (1, height, width, channels) of a depthwise one
        order = (3, 0, 1, 2) if layer.groups > 1 else (0, 3, 1, 2)
        values = [weights[0].permute(order), weights[1]]
    for parameter, value in zip(layer.parameters(), values, strict=True):
        if parameter.shape != value.shape:
            raise ValueError(f"a layer has the shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
        parameter.copy_(value)
