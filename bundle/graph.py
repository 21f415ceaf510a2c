"""From a scorer to one ONNX graph: aligned crops in, quality and the probabilities of all axes out.

The graph is traced through the method's own `predict`. Normalisation, the features of the sentences and the
calibration of the probabilities are therefore inside it, and change with the scorer.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.fast import without_onednn
from scoring import Scorer
from scoring.contract import Batch, Columns
from scoring.methods import METHODS

INPUT, QUALITY = "images", "quality"
DISTRIBUTION = "quality_distribution"  # the axis "quality" under the name that it has in our tables
INPUT_TYPES = {"uint8": torch.uint8, "float32": torch.float32}
OPSET = 20


class ScoringGraph(nn.Module):
    """RGB crops (N, S, S, 3) with values from 0 to 255 -> quality (N,), then (N, levels) for each axis."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        parts = (part for part in vars(scorer.scoring).values() if isinstance(part, nn.Module))
        self.parts = nn.ModuleList(without_onednn(part) for part in parts)  # so that their weights are found
        self.predict = scorer.predict

    def columns(self, images: Tensor) -> Columns:
        return self.predict(Batch(images[:, None], ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        columns = self.columns(images)
        return columns.quality.float(), *(levels.float() for levels in columns.axes.values())


def require(*packages: str) -> None:
    """Raise ImportError, with the command that helps, unless these packages are installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ImportError(f"an export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def require_exportable(name: str) -> None:
    """Raise ValueError, with the reason, when the scores of this method do not depend on one aligned crop alone."""
    method = METHODS[name]
    if not method.aligned or method.crops != 1:
        raise ValueError(
            f"{name} is not exported: a score is the mean over {method.crops} random crops of a photograph,"
            " with the landmarks of the face in each, which dlib finds; the scorer of a bundle has one aligned crop,"
            " and neither dlib nor torch. Score with inference.py"
        )


def side_of(scorer: Scorer) -> int:
    """S, the side in pixels of the crops that the network takes."""
    ramp = np.broadcast_to(np.arange(112, dtype=np.uint8)[:, None, None], (112, 112, 3))  # taken as an aligned crop
    return scorer.prepare_first(ramp).crops.shape[1]


def to_onnx(scorer: Scorer, input_type: str = "uint8") -> Any:
    """The `onnx.ModelProto` of a scorer on the CPU, with any number of images a batch. The scorer is used up.

    fp16 scorers give graphs whose backbone computes in fp16. Raises ValueError for a method that cannot be exported.
    """
    require("onnx", "onnxscript")
    require_exportable(scorer.method)
    graph, side = ScoringGraph(scorer).eval(), side_of(scorer)
    images = torch.zeros(2, side, side, 3, dtype=INPUT_TYPES[input_type])
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            (images,),
            input_names=[INPUT],
            output_names=output_names(graph, images),
            dynamic_shapes=({0: torch.export.Dim(INPUT)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return _without_traces(program.model_proto)


def output_names(graph: ScoringGraph, images: Tensor) -> list[str]:
    """quality, then the axes of the method in its order."""
    with torch.inference_mode():
        axes = graph.columns(images).axes
    return [QUALITY, *(DISTRIBUTION if axis == "quality" else axis for axis in axes)]


def torch_outputs(scorer: Scorer, crops: np.ndarray) -> list[np.ndarray]:
    """What the graph of this scorer gives for uint8 crops (N, S, S, 3)."""
    with torch.inference_mode():
        columns = scorer.predict(Batch(torch.from_numpy(crops)[:, None], ()))
    return [part.float().numpy() for part in (columns.quality, *columns.axes.values())]


def _without_traces(model: Any) -> Any:
    """Without the remarks of the exporter on each node, which hold the paths of this machine."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's reports of progress."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
