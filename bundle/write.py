"""The folder that an export gives: model.onnx, scorer.py, settings.json, README.md. It is checked first."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import sha256_of
from model.prompts import AXES, FACTORS
from model.statistics import rank_correlation
from model.weights import WEIGHTS
from scoring import Scorer
from scoring.methods import METHODS

from .graph import DISTRIBUTION, INPUT, QUALITY, require, require_exportable, side_of, to_onnx, torch_outputs
from .int8 import ENOUGH, Faces, quantise
from .readme import readme
from .standalone import standalone

MODEL, SCORER, SETTINGS, README = "model.onnx", "scorer.py", "settings.json", "README.md"
FILES = (MODEL, SCORER, SETTINGS, README)  # the settings come after the model that they describe
GRAPH_PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "fp32"}  # of a bundle -> of the scorer that is traced
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 5e-3}
OF_A_FACTOR = {"fp32": 1e-4, "fp16": 2e-2}  # a stored calibration is steep at the border of two levels
LOWEST_RANK_CORRELATION = 0.99  # of int8
BATCH_SIZES = (1, 2, 7)  # that a graph is checked with
BATCH_SIZE = 16  # of the bundle's scorer
TEMPLATE = Path(__file__).with_name("scorer.py")


@dataclass(frozen=True)
class Check:
    """How a graph compares with the torch scorer in fp32, on the faces `on`."""

    on: str
    faces: int
    largest_difference: float
    """Of a quality or of a probability of its levels. Of a quality above 1 it is the relative difference."""
    rank_correlation: float
    """Spearman's, of the qualities."""
    of_a_factor: float = 0.0
    """The largest difference of a probability of a factor."""


def export(
    weights: str | Path | None,
    method: str | None,
    output: Path,
    precision: str,
    input_type: str,
    faces: Faces,
) -> Check:
    """Write the bundle of a checkpoint to the folder `output`.

    int8 is calibrated on one half of `faces`, and every precision is checked on the other half. Nothing is written
    when the check fails. Raises RuntimeError then, ValueError for a method that cannot be exported, ImportError
    without the packages.
    """
    require("onnx", "onnxscript", "onnxruntime")
    if method in METHODS:
        require_exportable(method)  # before its weights are looked for
    reference = Scorer(method, weights, device="cpu", precision="fp32")
    model = to_onnx(Scorer(method, weights, device="cpu", precision=GRAPH_PRECISIONS[precision]), input_type)
    calibration, held_out = faces.crops(reference)
    if precision == "int8":
        model = quantise(model, calibration)
    settings = settings_of(reference, model, precision, input_type)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch)
        (folder / MODEL).write_bytes(model.SerializeToString())
        (folder / SCORER).write_text(standalone(TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
        _write_settings(folder, settings)  # the scorer reads them
        check = compare(folder, reference, held_out, faces.name)
        _require_equal(check, precision)
        settings["check"] = vars(check)
        if precision == "int8":
            enough = faces.folder is not None and len(calibration) >= ENOUGH
            settings["calibration"] = {"on": faces.name, "faces": len(calibration), "enough": enough}
        _write_settings(folder, settings)
        (folder / README).write_text(readme(settings), encoding="utf-8")
        output.mkdir(exist_ok=True)
        for name in FILES:
            os.replace(folder / name, output / name)
    return check


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def settings_of(scorer: Scorer, model: Any, precision: str, input_type: str) -> dict[str, Any]:
    """What a program must know of the graph, and where it comes from."""
    outputs = [output.name for output in model.graph.output]
    axes = {name: list(AXES["quality" if name == DISTRIBUTION else name]) for name in outputs if name != QUALITY}
    table = scorer.percentiles
    licence = next((known.licence for known in WEIGHTS if known.file == scorer.weights.name), "that of your weights")
    return {
        "method": scorer.method,
        "weights": {"file": scorer.weights.name, "sha256": sha256_of(scorer.weights), "licence": licence},
        "precision": precision,
        "input": {"name": INPUT, "type": input_type, "size": side_of(scorer), "layout": "NHWC", "colour": "RGB"},
        "outputs": outputs,
        "axes": axes,
        "range": METHODS[scorer.method].range,
        "percentiles": None if table is None else json.loads(table.to_json()),
        "batch_size": BATCH_SIZE,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def compare(folder: Path, reference: Scorer, crops: np.ndarray, name: str) -> Check:
    """The bundle in `folder`, in onnxruntime, beside the torch scorer: in batches of 1, 2, 7, and then of 16."""
    scorer = load_scorer(folder)
    sizes = [*BATCH_SIZES, *[BATCH_SIZE] * (len(crops) // BATCH_SIZE)]
    ends = np.cumsum(sizes)
    found, expected = [], []
    largest: dict[str, float] = {}  # of each output
    for batch in np.split(crops[: ends[-1]], ends[:-1]):
        if not len(batch):
            continue
        ours, theirs = scorer.predict(batch), torch_outputs(reference, batch)
        for output, values, wanted in zip(ours, ours.values(), theirs, strict=True):
            largest[output] = max(largest.get(output, 0.0), difference(values, wanted))
        found.append(ours[QUALITY])
        expected.append(theirs[0])
    rho = rank_correlation(np.concatenate(found), np.concatenate(expected))
    of_factors = [largest.pop(factor) for factor in FACTORS if factor in largest]
    return Check(name, sum(map(len, found)), max(largest.values()), rho, max(of_factors, default=0.0))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in units of the expected value where that is above 1."""
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def _require_equal(check: Check, precision: str) -> None:
    for what, found, limits in (
        ("", check.largest_difference, LARGEST_DIFFERENCE),
        (" in a factor", check.of_a_factor, OF_A_FACTOR),
    ):
        limit = limits.get(precision)
        if limit is not None and not found <= limit:
            raise RuntimeError(
                f"onnxruntime differs from torch by {found:.2g}{what}, and {limit:g} is allowed in {precision}: nothing"
                " was written; please report it with the versions of torch, onnx and onnxruntime"
            )
    if precision == "int8" and not check.rank_correlation >= LOWEST_RANK_CORRELATION:
        raise RuntimeError(
            f"int8 ranks {check.faces} held-out faces of {check.on} with a rank correlation of"
            f" {check.rank_correlation:.4f} to fp32, and {LOWEST_RANK_CORRELATION} is needed: nothing was written;"
            " give more faces, or faces like yours, with --calibration, or take fp32 or fp16"
        )


def load_scorer(folder: Path) -> Any:
    """The scorer of a bundle, from its own scorer.py."""
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"bundle_scorer_{abs(hash(folder))}"
    spec = spec_from_file_location(name, folder / SCORER)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module.Scorer(threads=torch.get_num_threads())
