"""From images to scores and reasons: one interface for all methods."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faces.align import ALIGN, Alignment, Placed
from faces.cluster import Cluster
from faces.containers import read_picture
from faces.detect import MIN_FACE_SIZE, Finder
from faces.reader import MAX_BYTES, ImageError, read_image, to_rgb
from faces.workers import Loaded, as_it_is, load_batches
from model.bands import Bands
from model.checkpoint import sha256_of
from model.device import pick_device
from model.fast import PRECISIONS, pick_precision
from model.percentiles import Percentiles
from model.prompts import AXES
from model.weights import WEIGHTS, find_weights, is_known

from .bands import bands_of
from .contract import Batch, Columns, Prepared
from .methods import DEFAULT_METHOD, METHODS
from .reasons import reasons_of
from .region_map import RegionMap, map_regions
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
    faces of any other. `faces` (largest, central, all), `min_face_size` in pixels, `rotate` (no, auto) and `detector`
    (a file of OpenCV's YuNet format) say which faces, as `faces.detect.Finder` explains. `batch_size` is the number of
    images that the network sees at once (default: 16 on a CPU, 256 on CUDA, 64 on mps). With `swapped_channels` the
    images hold BGR instead of RGB. `bands` is a table of measured bands in the place of the one that lies beside the
    weights (`scoring/bands.py`). A file of more than `max_bytes` has the status too_large. `options` are those of the
    method, such as `crops` of dsl-fiqa (`Method.options`).

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
        bands: str | Path | None = None,
        faces: str = "largest",
        min_face_size: float = MIN_FACE_SIZE,
        rotate: str = "no",
        detector: str | Path | None = None,
        max_bytes: int = MAX_BYTES,
        **options: Any,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "options")} | options
        if align not in ALIGN:
            raise ValueError(f"align {align!r} is none of {', '.join(ALIGN)}")
        if precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision {precision!r} is none of auto, {', '.join(PRECISIONS)}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is too small: at least 1 was expected, or None for the default")
        wanted, weights = method_and_weights(name, weights)
        self.align, self.swapped_channels, self.max_bytes = align, swapped_channels, max_bytes
        self.finder = Finder(faces, min_face_size, rotate, None if detector is None else str(detector))
        self.device = pick_device(device)
        self.dtype = pick_precision(precision, self.device)
        self.weights = find_weights(weights)
        network = load_network(self.weights)
        self.method = method_of(network, self.weights, wanted)
        method = METHODS[self.method]
        self.batch_size = batch_size or max(1, CROPS_AT_ONCE[self.device.type] // method.crops)
        self.percentiles = Percentiles.from_metadata(network.metadata)
        self.bands: Bands | None = bands_of(self.weights, bands)
        if unknown := options.keys() - method.options:
            known = ", ".join(method.options) or "none"
            raise ValueError(f"{self.method} has no option {min(unknown)}; its options: {known}")
        self.options = options
        alignment = Alignment(align, self.finder, check=True)
        self.scoring = method.scoring(network, self.dtype, self.device, alignment, **options)
        self.calibrated = getattr(self.scoring, "calibration", None) is not None
        self.predict: Callable[[Batch], Columns] = self.scoring.predict
        self.prepare: Callable[..., Prepared | list[Prepared]] = self.scoring.prepare
        if swapped_channels:
            self.prepare = partial(prepare_swapped, self.scoring.prepare)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the scores depend on, to the last digit, besides the images. The files are hashed once."""
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
        return {
            "method": self.method,
            "weights": sha256_of(self.weights),
            "device": self.device.type,
            "precision": precision,
            "align": self.align,
            **vars(self.finder),
            "detector": None if self.finder.detector is None else sha256_of(self.finder.detector),
            "swapped_channels": self.swapped_channels,
            "batch_size": self.batch_size,
            "bands": self.bands and {band.band: band.lowest for band in self.bands.measured},
            "max_bytes": self.max_bytes,
            **{name: sha256_of(value) if Path(str(value)).is_file() else value for name, value in self.options.items()},
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
        }

    def __repr__(self) -> str:
        return f"Scorer({self.method!r}, {str(self.weights)!r}, {str(self.device)!r}, {str(self.dtype)[6:]!r})"

    @overload
    def score(self, images: np.ndarray | Tensor, color: str = "rgb", points: Any = None) -> Any: ...
    @overload
    def score(self, images: str | Path | bytes | Image.Image, color: str = "rgb", points: Any = None) -> Any: ...
    @overload
    def score(self, images: Pictures, color: str = "rgb", points: Any = None) -> list[Score]: ...
    def score(self, images: Picture | Pictures, color: str = "rgb", points: Any = None) -> Score | list[Score]:
        """One image -> its score; a list, a tuple or a batch of images -> a list of scores, in order. With `faces` all
        one image gives a list too, with a score for each face.

        An image is a path, the bytes of an image file, a PIL image, or a uint8 array or tensor (H, W, 3) or (H, W).
        A batch is a uint8 array or tensor (N, H, W, 3). The channels of arrays and tensors are in the order `color`,
        rgb or bgr. A bad image gives a score with its status. `points` are the eyes, nose tip and mouth corners of a
        face that is known already, x and y in pixels, (5, 2); or of several, (K, 5, 2), which give a list; for a list
        of images a list of them. Nothing is searched then. Raises TypeError or ValueError for anything else.
        """
        if color not in ("rgb", "bgr"):
            raise ValueError(f"color {color!r} is neither rgb nor bgr")
        if isinstance(images, Tensor):
            images = images.detach().cpu().numpy()
        if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4):
            size = self.batch_size
            starts, given = range(0, len(images), size), [None] * len(images) if points is None else list(points)
            pairs = list(zip(images, given, strict=True))
            return list(self._scores([self._load(image, color, p) for image, p in pairs[i : i + size]] for i in starts))
        several = self.finder.faces == "all" if points is None else np.ndim(points) == 3
        scores = list(self._scores(iter([[self._load(images, color, points)]])))
        return scores if several else scores[0]

    def stream(self, paths: Iterable[str], workers: int = 0, cluster: Cluster | None = None) -> Iterator[Score]:
        """A score for each path, in order: for any number of files, read by `workers` processes, or read and scored by
        the processes of a cluster. A picture in a tar archive or Parquet file has the path CONTAINER/MEMBER."""
        read = partial(read_prepared, self.prepare, max_bytes=self.max_bytes)
        if cluster:
            make = partial(make_batch_scorer, self.arguments)
            return chain.from_iterable(cluster.results(paths, read, make, self.batch_size, "scores"))
        return self._scores(load_batches(paths, as_it_is, self.batch_size, workers, read))

    def region_map(self, image: Picture, axis: str = "quality", color: str = "rgb", face: int = 0) -> RegionMap:
        """What in a face lowers the quality, or the probability of the best level of a factor: regions of the aligned
        face are replaced, and all are scored in ordinary batches (`scoring/region_map.py`). `face` is the `Score.face`
        of one of the faces that `score` finds in the image.

        Raises ValueError for an axis that the method does not give, for a method that takes whole pictures, and for a
        face that there is not; ImageError for a bad image.
        """
        return next(self.region_maps(image, [face], axis, color))

    def region_maps(
        self, image: Picture, faces: Sequence[int], axis: str = "quality", color: str = "rgb"
    ) -> Iterator[RegionMap]:
        """`region_map` of several faces of an image, which is read and searched once."""
        method = METHODS[self.method]
        if not method.aligned:
            raise ValueError(f"{self.method} scores whole pictures, and a map needs an aligned face")
        if axis not in ("quality", *method.axes):
            known = ", ".join(dict.fromkeys(["quality", *method.axes]))
            raise ValueError(f"{self.method} has no axis {axis!r}: expected one of {known}")
        found = self._prepare_faces(pixels(image, color, self.max_bytes))
        for face in faces:
            if not 0 <= face < len(found):
                raise ValueError(f"face {face} was wanted, and the image has {len(found)}; the first has the number 0")
            yield map_regions(found[face].crops[0], axis, partial(self._values, axis, found[face].extra))

    def prepare_first(self, rgb: np.ndarray, path: str = "") -> Prepared:
        """`prepare` for one face of the image, the first of those that are wanted. Raises ImageError."""
        return self._prepare_faces(rgb, path)[0]

    def _prepare_faces(self, rgb: np.ndarray, path: str = "") -> list[Prepared]:
        found = self.prepare(rgb, path)
        return found if isinstance(found, list) else [found]

    @torch.inference_mode()
    def _values(self, axis: str, extra: Any, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Quality, or the probability of the best level of a factor, of each crop: (N,)."""
        values = []
        for start in range(0, len(crops), self.batch_size):
            stacked = torch.from_numpy(np.stack(crops[start : start + self.batch_size])[:, None])
            columns = self.predict(Batch(stacked.to(self.device), [extra] * len(stacked)))
            values.append(columns.quality if axis == "quality" else columns.axes[axis][:, -1])
        return torch.cat(values).float().cpu().numpy()

    def load(
        self, image: Picture, color: str = "rgb", faces: str | None = None
    ) -> Loaded[Prepared | list[Prepared]]:
        """An image, read and prepared for `score_loaded`; a bad one has a status. Many threads may do this at once.

        `faces`, largest, central or all, takes the place of the scorer's.
        """
        return self._load(image, color, faces=faces if METHODS[self.method].aligned else None)

    def score_loaded(self, batch: Sequence[Loaded[Prepared | list[Prepared]]]) -> list[Score]:
        """The scores of one batch of `load`, in its order. Only one thread at a time may call it."""
        return list(self._scores([batch]))

    def score_each(self, batch: Sequence[Loaded[Prepared | list[Prepared]]]) -> list[list[Score]]:
        """The scores of one batch of `load`, for each item those of its faces. As `score_loaded`."""
        found: list[list[Score]] = [[] for _ in batch]
        for score in self.score_loaded([replace(item, path=str(i)) for i, item in enumerate(batch)]):
            found[int(score.path or 0)].append(score)
        return found

    def _load(
        self, image: Picture, color: str, points: Any = None, faces: str | None = None
    ) -> Loaded[Prepared | list[Prepared]]:
        path = os.fspath(image) if isinstance(image, str | Path) else ""
        if points is not None and not METHODS[self.method].aligned:
            raise ValueError(f"{self.method} takes whole pictures: points of a face are of no use to it")
        given = {name: value for name, value in (("points", points), ("faces", faces)) if value is not None}
        try:
            return Loaded(path, "ok", self.prepare(pixels(image, color, self.max_bytes), path, **given))
        except ImageError as error:
            return Loaded(path, error.status, None)

    def _scores(self, batches: Iterable[Sequence[Loaded[Prepared | list[Prepared]]]]) -> Iterator[Score]:
        """On CUDA the next batch is copied and queued before the results of this one are waited for."""
        return self._scores_of_faces(part for batch in batches for part in batches_of_faces(batch, self.batch_size))

    def _scores_of_faces(self, batches: Iterable[Sequence[Loaded[Prepared]]]) -> Iterator[Score]:
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
            assert image.value is not None
            placed = vars(image.value.placed or Placed())
            if not math.isfinite(value):
                yield Score(path, "non_finite", **placed)
                continue
            status = image.value.status if image.value.status != "ok" else remarks[i]
            factors = {axis: dict(zip(AXES[axis], rows[i], strict=True)) for axis, rows in probabilities.items()}
            distribution = tuple(distributions[i]) if distributions else None
            percentile = percentiles[i] if percentiles else None
            band = self.bands.band(value) if self.bands else None
            reasons = reasons_of(factors if self.calibrated else None, image.value.facts, value, band)
            yield Score(path, status, value, factors, distribution, percentile, band, reasons, **placed)


def batches_of_faces(
    images: Sequence[Loaded[Prepared | list[Prepared]]], size: int
) -> Iterator[list[Loaded[Prepared]]]:
    """The faces of some images, `size` at a time; an image that could not be read counts as one."""
    faces = [
        Loaded(image.path, image.status, one)
        for image in images
        for one in (image.value if isinstance(image.value, list) else [image.value])
    ]
    return (faces[i : i + size] for i in range(0, len(faces), size))


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
    if isinstance(image, bytes):
        return read_image(image, max_bytes=max_bytes)
    if isinstance(image, str | Path):
        return read_picture(os.fspath(image), max_bytes)
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
    prepare: Callable[..., Prepared | list[Prepared]], path: str, max_bytes: int = MAX_BYTES
) -> Prepared | list[Prepared]:
    """The image at a path, prepared. Raises ImageError."""
    return prepare(read_picture(path, max_bytes), path)


def make_batch_scorer(arguments: Mapping[str, Any]) -> Callable[[Sequence[Loaded[Any]]], list[Score]]:
    """`Scorer.score_loaded` of a scorer of its own, for a process of a cluster."""
    return Scorer(**arguments).score_loaded


def prepare_swapped(
    prepare: Callable[..., Prepared | list[Prepared]], bgr: np.ndarray, path: str = "", **given: Any
) -> Prepared | list[Prepared]:
    """`prepare` for images whose red and blue are swapped."""
    return prepare(_swapped(bgr), path, **given)


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
