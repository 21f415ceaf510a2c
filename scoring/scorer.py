"""From images to scores and reasons: CLIB-FIQA (Ou et al., CVPR 2024) and CR-FIQA (Boutros et al., CVPR 2023)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faces.align import align_face, is_aligned
from faces.reader import ImageError, read_image, to_rgb
from faces.workers import Loaded, load_batches
from model.checkpoint import sha256_of
from model.clib_fiqa import ClibFiqa, expected_quality, marginals
from model.device import pick_device
from model.fast import PRECISIONS, accelerate, pick_precision
from model.iresnet import IResNet
from model.percentiles import Percentiles
from model.preprocessing import Preprocessing
from model.prompts import AXES, JOINT_SHAPE, joint_prompts
from model.weights import find_weights

from .text_cache import load_network

Picture: TypeAlias = str | Path | bytes | np.ndarray | Image.Image
Pictures: TypeAlias = list[Picture] | list[str] | list[Path] | list[np.ndarray] | tuple[Picture, ...]
Prediction: TypeAlias = tuple[Tensor, dict[str, Tensor]]  # quality (N,), and for each axis probabilities (N, levels)

ALIGN = ("auto", "yes", "no")


@dataclass(frozen=True, repr=False)
class Score:
    """What a system says about one image. `quality` is higher for better faces; None unless `status` is "ok".

    `status` is "ok" or the reason of the failure: one of `faces.reader.ImageError`, or non_finite when the network
    gave no number. `factors` maps blur, occlusion, pose, expression and illumination to their levels' probabilities,
    from worst to best; `quality_distribution` holds those of bad, poor, fair, good, perfect. A system without reasons
    leaves them empty and None. `percentile`: the share, in percent, that scores below it of the set that is named in
    `Scorer.percentiles`; None when the weights hold no such table.
    """

    path: str | None
    status: str = "ok"
    quality: float | None = None
    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    quality_distribution: tuple[float, ...] | None = None
    percentile: float | None = None

    def label(self, axis: str) -> str | None:
        """The most probable level of a factor or of "quality", or None where there are no probabilities."""
        if axis not in AXES:
            raise ValueError(f"no axis {axis!r}: expected one of {', '.join(AXES)}")
        if axis == "quality":
            levels = dict(zip(AXES[axis], self.quality_distribution or (), strict=False))
        else:
            levels = self.factors.get(axis, {})
        return max(levels, key=levels.__getitem__) if levels else None

    @property
    def sentence(self) -> str | None:
        """The sentence of CLIB-FIQA's 360 that names the most probable level of every axis."""
        labels = {axis: self.label(axis) for axis in AXES}
        if None in labels.values():
            return None
        levels = [AXES[axis].index(str(label)) for axis, label in labels.items()]
        return joint_prompts()[int(np.ravel_multi_index(levels, JOINT_SHAPE))]

    def __repr__(self) -> str:
        labels = [f"{axis}={label!r}" for axis in self.factors if (label := self.label(axis))]
        facts = [f"quality={self.quality:.4f}", *labels] if self.quality is not None else [f"status={self.status!r}"]
        return f"Score({', '.join([repr(self.path), *facts])})"


class Scorer:
    """A network that scores face images: `Scorer("clib-fiqa").score("face.jpg").quality`.

    `method` is one of `METHODS` (default: what the weights are for); `weights` a checkpoint file or a name of
    `model/weights.py` (default: the method's own, and CLIB-FIQA's without either). `precision` is auto (bf16 on CUDA,
    else fp32), fp32, bf16 or fp16. `align` is auto (a picture of 112x112 pixels is an aligned crop, in any other the
    largest face is found and aligned), yes or no. `swapped_channels`: red and blue have changed places in every image.
    Raises ValueError for a wrong argument or checkpoint, WeightsError (an OSError) when the weights are not there.
    """

    def __init__(
        self,
        method: str | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        align: str = "auto",
        batch_size: int = 16,
        swapped_channels: bool = False,
    ) -> None:
        for name, value, choices in (("method", method or DEFAULT_METHOD, METHODS), ("align", align, ALIGN)):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is none of {', '.join(choices)}")
        if precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}")
        self.align, self.batch_size, self.swapped_channels = align, batch_size, swapped_channels
        self.device = pick_device(device)
        self.dtype = pick_precision(precision, self.device)
        self.weights = find_weights(weights or METHODS[method or DEFAULT_METHOD].weights)
        network = load_network(self.weights)
        self.method = method_of(network, self.weights, method)
        self.preprocessing: Preprocessing = network.preprocessing
        self.percentiles = Percentiles.from_metadata(network.metadata)
        self._prepare = partial(prepare, self.preprocessing, align, swapped_channels)
        self._predict = METHODS[self.method].predictor(network, self.dtype, self.device)

    @property
    def settings(self) -> dict[str, str | bool]:
        """What the scores depend on, besides the images."""
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
        return {
            "method": self.method,
            "weights": sha256_of(self.weights),
            "device": self.device.type,
            "precision": precision,
            "align": self.align,
            "swapped_channels": self.swapped_channels,
        }

    def __repr__(self) -> str:
        return f"Scorer({self.method!r}, {str(self.weights)!r}, {str(self.device)!r}, {str(self.dtype)[6:]!r})"

    @overload
    def score(self, images: Picture, color: str = "rgb") -> Score: ...
    @overload
    def score(self, images: Pictures, color: str = "rgb") -> list[Score]: ...
    def score(self, images: Picture | Pictures, color: str = "rgb") -> Score | list[Score]:
        """One image, or a list of them: paths, bytes of image files, PIL images, uint8 arrays (H, W, 3) or (H, W).

        The channels of arrays are in the order `color`, rgb or bgr. A bad image is a score with its status; raises
        TypeError or ValueError for what is no image at all.
        """
        if color not in ("rgb", "bgr"):
            raise ValueError(f"color {color!r} is neither rgb nor bgr")
        if not isinstance(images, list | tuple):
            return self._score_batch([self._load(images, color)])[0]
        size = self.batch_size
        batches = ([self._load(image, color) for image in images[i : i + size]] for i in range(0, len(images), size))
        return [score for batch in batches for score in self._score_batch(batch)]

    def stream(self, paths: Iterable[str], workers: int = 0) -> Iterator[Score]:
        """A score for each path, in order, as it is made: for any number of files, read by `workers` processes."""
        for batch in load_batches(paths, self._prepare, self.batch_size, workers):
            yield from self._score_batch(batch)

    def _load(self, image: Picture, color: str) -> Loaded[np.ndarray]:
        path = os.fspath(image) if isinstance(image, str | Path) else ""
        try:
            return Loaded(path, "ok", self._prepare(pixels(image, color)))
        except ImageError as error:
            return Loaded(path, error.status, None)

    @torch.inference_mode()
    def _score_batch(self, batch: Sequence[Loaded[np.ndarray]]) -> list[Score]:
        crops = [item.value for item in batch if item.value is not None]
        scores = iter(self._score_crops(np.stack(crops)) if crops else ())
        return [
            replace(next(scores) if item.value is not None else Score(None, item.status), path=item.path or None)
            for item in batch
        ]

    def _score_crops(self, crops: np.ndarray) -> Iterator[Score]:
        """RGB uint8 (N, S, S, 3), of the network's size."""
        images = self.preprocessing.normalise(torch.from_numpy(crops).to(self.device)).to(self.dtype)
        quality, axes = self._predict(images)
        distributions = {axis: probabilities.tolist() for axis, probabilities in axes.items()}
        for i, value in enumerate(quality.tolist()):
            if not math.isfinite(value):
                yield Score(None, "non_finite")
                continue
            levels = {axis: rows[i] for axis, rows in distributions.items()}
            overall = tuple(levels.pop("quality")) if "quality" in levels else None
            factors = {axis: dict(zip(AXES[axis], row, strict=True)) for axis, row in levels.items()}
            percentile = self.percentiles.percentile(value) if self.percentiles else None
            yield Score(None, "ok", value, factors, overall, percentile)


def pixels(image: Picture, color: str = "rgb") -> np.ndarray:
    """The RGB uint8 array (H, W, 3) of a picture in any of the forms that `Scorer.score` takes.

    Raises ImageError for a bad picture, TypeError or ValueError for what is none.
    """
    if isinstance(image, str | Path | bytes):
        return read_image(image)
    if isinstance(image, np.ndarray):
        rgb = to_rgb(image)
        return _swapped(rgb) if color == "bgr" else rgb
    if isinstance(image, Image.Image):
        return to_rgb(image)
    raise TypeError(
        f"cannot score a {type(image).__name__}: expected a path, the bytes of an image file, a PIL image, "
        "a uint8 array (H, W, 3), or a list of these"
    )


def prepare(preprocessing: Preprocessing, align: str, swapped_channels: bool, rgb: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> the face as the network takes it, uint8 (S, S, 3). Raises ImageError (no_face)."""
    if swapped_channels:
        rgb = _swapped(rgb)
    if align == "yes" or (align == "auto" and not is_aligned(rgb)):
        rgb = align_face(rgb)
    return preprocessing.resize(rgb)


def _swapped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def method_of(network: Any, weights: Path, wanted: str | None) -> str:
    """The method that scores with this network. Raises ValueError when there is none, or another one was wanted."""
    fitting = next((name for name, method in METHODS.items() if isinstance(network, method.network)), None)
    kind = type(network).__name__
    if fitting is None:
        raise ValueError(f"{weights} is a checkpoint of {kind}: no method of {', '.join(METHODS)} scores with it")
    if wanted not in (None, fitting):
        raise ValueError(f"{weights} is a checkpoint of {kind} and not for {wanted}: use the method {fitting}")
    return fitting


def _clib_fiqa(network: ClibFiqa, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Prediction]:
    clip: Any = network.clip
    clip.visual = accelerate(clip.visual, dtype, device)
    network.to(device)  # the head stays in fp32: a hundredfold logit scale would magnify half precision's rounding

    def predict(images: Tensor) -> Prediction:
        axes = marginals(network(images))
        return expected_quality(axes["quality"]), axes

    return predict


def _cr_fiqa(network: IResNet, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Prediction]:
    if network.qs is None:
        raise ValueError("this IResNet has no quality head (qs.weight, qs.bias): it recognises faces and scores none")
    head, network.qs = network.qs.to(device), None  # in fp32: half precision would round many qualities to the same
    backbone = accelerate(network, dtype, device)
    return lambda images: (head(backbone(images)[0].float()).squeeze(1), {})


class Method(NamedTuple):
    """A system that scores: its default weights, its network, and how to get predictions from normalised images."""

    weights: str
    network: type[Any]
    predictor: Callable[[Any, torch.dtype, torch.device], Callable[[Tensor], Prediction]]


DEFAULT_METHOD = "clib-fiqa"
METHODS = {
    "clib-fiqa": Method("clib-fiqa", ClibFiqa, _clib_fiqa),
    "cr-fiqa": Method("cr-fiqa-l", IResNet, _cr_fiqa),
}
