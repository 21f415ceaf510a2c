"""From images to scores and reasons: one interface for all methods."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faces.reader import MAX_BYTES, ImageError, read_image, to_rgb
from faces.workers import Loaded, load_batches
from model.checkpoint import sha256_of
from model.device import pick_device
from model.fast import PRECISIONS, pick_precision
from model.percentiles import Percentiles
from model.prompts import AXES
from model.weights import WEIGHTS, find_weights, is_known

from .contract import Batch, Columns, Prepared
from .face_crops import ALIGN
from .methods import DEFAULT_METHOD, METHODS
from .score import Score
from .text_cache import load_network

Picture: TypeAlias = str | Path | bytes | np.ndarray | Tensor | Image.Image
Pictures: TypeAlias = list[Picture] | list[str] | list[Path] | list[np.ndarray] | tuple[Picture, ...]

CROPS_AT_ONCE = {"cpu": 16, "cuda": 256, "mps": 64}  # default batch sizes, for methods that take one crop an image


class Scorer:
    """A network that scores face images: `Scorer("clib-fiqa").score("face.jpg").quality`.

    `name` is a method of `METHODS`, a name of known weights (`scoring.list_models`) or a checkpoint file; the default
    is CLIB-FIQA. `weights`, a file or a name, replaces the default weights of a method. Without a method the weights
    decide.

    `device` is auto, cpu, cuda, cuda:N or mps. `precision` is auto (bf16 on CUDA, else fp32), fp32, bf16 or fp16.
    `align` is auto, yes or no: auto takes a picture of 112x112 pixels as an aligned crop, and finds and aligns the
    largest face of any other. `batch_size` is the number of images that the network sees at once (default: 16 on a CPU,
    256 on CUDA, 64 on mps). With `swapped_channels` the images hold BGR instead of RGB. `options` are those of the
    method, such as `crops` of dsl-fiqa (`Method.options`). A file of more than `max_bytes` has the status too_large.

    Raises ValueError for a wrong argument or checkpoint, WeightsError (an OSError) when the weights are not there.
    """

    def __init__(
        self,
        name: str | Path | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        align: str = "auto",
        batch_size: int | None = None,
        swapped_channels: bool = False,
        max_bytes: int = MAX_BYTES,
        **options: Any,
    ) -> None:
        if align not in ALIGN:
            raise ValueError(f"align {align!r} is none of {', '.join(ALIGN)}")
        if precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is too small: at least 1 was expected, or None for the default")
        wanted, weights = method_and_weights(name, weights)
        self.align, self.swapped_channels, self.max_bytes = align, swapped_channels, max_bytes
        self.device = pick_device(device)
        self.dtype = pick_precision(precision, self.device)
        self.weights = find_weights(weights)
        network = load_network(self.weights)
        self.method = method_of(network, self.weights, wanted)
        method = METHODS[self.method]
        self.batch_size = batch_size or max(1, CROPS_AT_ONCE[self.device.type] // method.crops)
        self.percentiles = Percentiles.from_metadata(network.metadata)
        if unknown := options.keys() - method.options:
            known = ", ".join(method.options) or "none"
            raise ValueError(f"{self.method} has no option {min(unknown)}; its options: {known}")
        self.options = options
        scoring = method.scoring(network, self.dtype, self.device, align, **options)
        self.predict: Callable[[Batch], Columns] = scoring.predict
        self.prepare: Callable[[np.ndarray, str], Prepared] = scoring.prepare
        if swapped_channels:
            self.prepare = partial(prepare_swapped, scoring.prepare)

    @property
    def settings(self) -> dict[str, str | bool | int]:
        """What the scores depend on, to the last digit, besides the images."""
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
        return {
            "method": self.method,
            "weights": sha256_of(self.weights),
            "device": self.device.type,
            "precision": precision,
            "align": self.align,
            "swapped_channels": self.swapped_channels,
            "batch_size": self.batch_size,
            "max_bytes": self.max_bytes,
            **{name: sha256_of(value) if Path(str(value)).is_file() else value for name, value in self.options.items()},
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
        }

    def __repr__(self) -> str:
        return f"Scorer({self.method!r}, {str(self.weights)!r}, {str(self.device)!r}, {str(self.dtype)[6:]!r})"

    @overload
    def score(self, images: np.ndarray | Tensor, color: str = "rgb") -> Any: ...
    @overload
    def score(self, images: str | Path | bytes | Image.Image, color: str = "rgb") -> Score: ...
    @overload
    def score(self, images: Pictures, color: str = "rgb") -> list[Score]: ...
    def score(self, images: Picture | Pictures, color: str = "rgb") -> Score | list[Score]:
        """One image -> its score; a list, a tuple or a batch of images -> a list of scores, in order.

        An image is a path, the bytes of an image file, a PIL image, or a uint8 array or tensor (H, W, 3) or (H, W).
        A batch is a uint8 array or tensor (N, H, W, 3). The channels of arrays and tensors are in the order `color`,
        rgb or bgr. A bad image gives a score with its status. Raises TypeError or ValueError for anything else.
        """
        if color not in ("rgb", "bgr"):
            raise ValueError(f"color {color!r} is neither rgb nor bgr")
        if isinstance(images, Tensor):
            images = images.detach().cpu().numpy()
        if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4):
            size = self.batch_size
            starts = range(0, len(images), size)
            return list(self._scores([self._load(image, color) for image in images[i : i + size]] for i in starts))
        return next(self._scores(iter([[self._load(images, color)]])))

    def stream(self, paths: Iterable[str], workers: int = 0) -> Iterator[Score]:
        """A score for each path, in order: for any number of files, read by `workers` processes."""
        read = partial(read_prepared, self.prepare, max_bytes=self.max_bytes)
        return self._scores(load_batches(paths, as_it_is, self.batch_size, workers, read))

    def _load(self, image: Picture, color: str) -> Loaded[Prepared]:
        path = os.fspath(image) if isinstance(image, str | Path) else ""
        try:
            return Loaded(path, "ok", self.prepare(pixels(image, color, self.max_bytes), path))
        except ImageError as error:
            return Loaded(path, error.status, None)

    def _scores(self, batches: Iterable[Sequence[Loaded[Prepared]]]) -> Iterator[Score]:
        """On CUDA the next batch is copied and queued before the results of this one are waited for."""
        started: deque[tuple[Sequence[Loaded[Prepared]], Columns | None]] = deque()
        ahead = 1 if self.device.type == "cuda" else 0
        for batch in batches:
            started.append((batch, self._start(batch)))
            if len(started) > ahead:
                yield from self._finish(*started.popleft())
        while started:
            yield from self._finish(*started.popleft())

    @torch.inference_mode()
    def _start(self, batch: Sequence[Loaded[Prepared]]) -> Columns | None:
        """The columns of the images that could be read, None when there are none; on CUDA they may not be computed."""
        prepared = [item.value for item in batch if item.value is not None]
        if not prepared:
            return None
        crops = torch.from_numpy(np.stack([one.crops for one in prepared]))
        if self.device.type == "cuda":
            crops = crops.pin_memory()  # only from pinned memory does a copy run beside the computation
        return self.predict(Batch(crops.to(self.device, non_blocking=True), [one.extra for one in prepared]))

    def _finish(self, batch: Sequence[Loaded[Prepared]], columns: Columns | None) -> Iterator[Score]:
        """The scores of a batch, those of images that could not be read included."""
        read = [item for item in batch if item.value is not None]
        scores = iter(self._to_scores(read, columns) if columns else ())
        for item in batch:
            yield next(scores) if item.value is not None else Score(item.path or None, item.status)

    def _to_scores(self, images: Sequence[Loaded[Prepared]], columns: Columns) -> Iterator[Score]:
        quality, axes = on_host(columns)
        probabilities = {axis: levels.tolist() for axis, levels in axes.items()}
        distributions = probabilities.pop("quality", None)
        percentiles = self.percentiles.percentiles(quality).tolist() if self.percentiles else None
        remarks = columns.status or ["ok"] * len(images)
        for i, (image, value) in enumerate(zip(images, quality.tolist(), strict=True)):
            path = image.path or None
            if not math.isfinite(value):
                yield Score(path, "non_finite")
                continue
            assert image.value is not None
            status = image.value.status if image.value.status != "ok" else remarks[i]
            factors = {axis: dict(zip(AXES[axis], rows[i], strict=True)) for axis, rows in probabilities.items()}
            distribution = tuple(distributions[i]) if distributions else None
            yield Score(path, status, value, factors, distribution, percentiles[i] if percentiles else None)


def on_host(columns: Columns) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Quality (N,) and each axis (N, levels) as float32 arrays, with one copy from the device."""
    parts = [columns.quality[:, None], *columns.axes.values()]
    table = torch.cat([part.float() for part in parts], dim=1).cpu().numpy()
    ends = np.cumsum([part.shape[1] for part in parts])
    quality, *axes = np.split(table, ends[:-1], axis=1)
    return quality[:, 0], dict(zip(columns.axes, axes, strict=True))


def pixels(image: Picture, color: str = "rgb", max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The RGB uint8 array (H, W, 3) of an image in any of the forms that `Scorer.score` takes.

    Raises ImageError for a bad image, TypeError or ValueError for something else.
    """
    if isinstance(image, str | Path | bytes):
        return read_image(image, max_bytes=max_bytes)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        rgb = to_rgb(image)
        return _swapped(rgb) if color == "bgr" else rgb
    if isinstance(image, Image.Image):
        return to_rgb(image)
    raise TypeError(
        f"cannot score a {type(image).__name__}: expected a path, the bytes of an image file, a PIL image, "
        "a uint8 array or tensor (H, W, 3), a batch (N, H, W, 3), or a list of images"
    )


def read_prepared(
    prepare: Callable[[np.ndarray, str], Prepared], path: str, max_bytes: int = MAX_BYTES
) -> Prepared:
    """The image at a path, prepared. Raises ImageError."""
    return prepare(read_image(path, max_bytes=max_bytes), path)


def as_it_is(prepared: Prepared) -> Prepared:
    """For `load_batches`: `read_prepared` has done all."""
    return prepared


def prepare_swapped(prepare: Callable[[np.ndarray, str], Prepared], bgr: np.ndarray, path: str = "") -> Prepared:
    """`prepare` for images whose red and blue are swapped."""
    return prepare(_swapped(bgr), path)


def _swapped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def method_and_weights(name: str | Path | None, weights: str | Path | None) -> tuple[str | None, str | Path]:
    """The method that was asked for (None: the one of the weights), and the weights, of the first two arguments of
    `Scorer`. Raises ValueError when they make no sense."""
    if name is None:
        return None, weights or METHODS[DEFAULT_METHOD].weights
    if str(name) in METHODS:
        default = METHODS[str(name)].weights
        if weights is None and not is_known(default):
            raise ValueError(f"no weights of {name} are known: train some, and give their file as the weights")
        return str(name), weights or default
    if not is_known(name):
        names = ", ".join(known.name for known in WEIGHTS)
        raise ValueError(f"method {str(name)!r} is none of {', '.join(METHODS)}; nor is it a file or one of {names}")
    if weights is not None:
        raise ValueError(f"two weights were given, {name} and {weights}: give one of them, or a method and weights")
    return None, name


def method_of(network: Any, weights: Path, wanted: str | None) -> str:
    """The method that scores with this network. Raises ValueError when there is none, or another one was wanted."""
    fitting = next((name for name, method in METHODS.items() if isinstance(network, method.network)), None)
    kind = type(network).__name__
    if fitting is None:
        raise ValueError(f"{weights} is a checkpoint of {kind}: no method of {', '.join(METHODS)} scores with it")
    if wanted not in (None, fitting):
        raise ValueError(f"{weights} is a checkpoint of {kind} and not for {wanted}: use the method {fitting}")
    return fitting
