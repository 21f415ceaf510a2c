"""Static quantisation to int8: 8-bit weights for each output channel, 8-bit activations with ranges seen on faces.

What a convolution or a fully connected layer reads is rounded to 256 steps between the smallest and the largest value
that it took on calibration faces. Faces unlike those, such as darker or more blurred ones, are cut off at the ends: so
calibrate on faces of your own captures.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from faces.degradations import KINDS, degrade
from faces.listing import list_images
from faces.reader import ImageError, read_image
from scoring import Scorer

SAMPLES = Path(__file__).parents[1] / "samples"
STRENGTHS = (0.25, 0.75)
ENOUGH = 200  # faces to calibrate on; below that the ranges of some channels still grow
FEWEST = 32
BATCH = 8
QUANTISED = ["Conv", "Gemm"]


@dataclass(frozen=True)
class Faces:
    """What int8 is calibrated on, and a graph is checked on: a folder of faces, or the samples and damaged versions."""

    folder: Path | None
    most: int

    @property
    def name(self) -> str:
        return "the samples of the repository and damaged versions of them" if self.folder is None else self.folder.name

    def crops(self, scorer: Scorer) -> tuple[np.ndarray, np.ndarray]:
        """Two halves of at most `most` faces in a random order, as the scorer prepares them: (N, S, S, 3) uint8.

        Pictures that cannot be read or show no face are left out. Raises ValueError when fewer than 32 are left.
        """
        crops = list(self._samples(scorer) if self.folder is None else self._files(self.folder, scorer))
        if len(crops) < FEWEST:
            raise ValueError(f"{self.folder} holds {len(crops)} usable faces; at least {FEWEST} were expected")
        return np.stack(crops[::2]), np.stack(crops[1::2])

    def _files(self, folder: Path, scorer: Scorer) -> Iterator[np.ndarray]:
        paths = list_images(folder)
        for place in np.random.default_rng(0).permutation(len(paths))[: self.most]:
            with contextlib.suppress(ImageError):
                yield scorer.prepare_first(read_image(paths[place]), str(paths[place])).crops[0]

    def _samples(self, scorer: Scorer) -> Iterator[np.ndarray]:
        images = [read_image(path) for path in list_images(SAMPLES)]
        rng = np.random.default_rng(0)
        damaged = (degrade(image, kind, strength, rng) for kind, strength, image in product(KINDS, STRENGTHS, images))
        for image in [*images, *damaged][: self.most]:
            yield scorer.prepare_first(image).crops[0]


def quantise(model: Any, crops: np.ndarray) -> Any:
    """An fp32 `onnx.ModelProto` -> the same network in int8, its ranges seen on crops (N, S, S, 3) uint8.

    Only the inputs and the weights of convolutions and fully connected layers are quantised. Quantised outputs as well
    lowered the rank correlation of an earlier default model from 0.997 to 0.986. OpenVINO computes such layers in int8.
    onnxruntime would need quantised outputs to do so throughout; there int8 saves memory more than time.
    Attention, the cosines and the softmax stay in fp32 everywhere.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().addFilter(_not_its_advice)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            plain, prepared, quantised = (str(Path(scratch) / f"{name}.onnx") for name in ("plain", "prepared", "int8"))
            onnx.save(model, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantised,
                _Batches(model.graph.input[0], crops),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTISED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": QUANTISED},
            )
            return onnx.load(quantised)
    finally:
        logging.getLogger().removeFilter(_not_its_advice)


class _Batches:
    """Calibration faces as onnxruntime asks for them."""

    def __init__(self, entry: Any, crops: np.ndarray) -> None:
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        starts = range(0, len(crops), BATCH)
        self.remaining = iter([{entry.name: crops[start : start + BATCH].astype(dtype)} for start in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.remaining, None)


def _not_its_advice(record: logging.LogRecord) -> bool:
    """onnxruntime advises to prepare the model, which is done."""
    return "pre-processing" not in record.getMessage().lower()
