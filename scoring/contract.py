"""The contract between `Scorer` and the methods that score: one module for each method, one row in `METHODS`.

A method's class is made from the loaded network. It has two members:

- `prepare(rgb, path) -> Prepared`, or a list of them for several faces of the image, runs in the worker processes that
  read images. So it must be picklable: a function of a module, a `functools.partial` of one, or an object of a small
  class with `__call__`.
- `predict(batch) -> Columns` runs on the device, under `torch.inference_mode`. It should not wait for the device: the
  scorer reads all columns of a batch with one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from faces.align import Placed

from .reasons import Facts


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the network."""

    crops: np.ndarray
    """RGB uint8 (K, S, S, 3). K and S are the same for all images of a scorer."""
    extra: Any = None
    """What `predict` needs besides the crops, such as landmarks; it must be picklable."""
    status: str = "ok"
    """A remark on the score that will be made of these crops, such as no_landmarks. It appears in the row."""
    facts: Facts | None = None
    """What finding the face told, for the reasons; None for a picture that was taken as it is."""
    placed: Placed | None = None
    """Where the face lies in the image, for methods that take aligned faces."""


class Batch(NamedTuple):
    """N prepared images."""

    crops: Tensor
    """RGB uint8 (N, K, S, S, 3), on the device."""
    extra: Sequence[Any]
    """N times `Prepared.extra`."""


@dataclass(frozen=True)
class Columns:
    """The results of a batch, on the device."""

    quality: Tensor
    """(N,), higher is better; a value that is not finite becomes the status non_finite."""
    axes: Mapping[str, Tensor] = field(default_factory=dict)
    """For each axis of `model.prompts.AXES` the probabilities (N, levels), from worst to best."""
    status: Sequence[str] | None = None
    """For each image "ok" or a remark, where the network finds something to say."""


class Scoring(Protocol):
    """A method with its network, on a device."""

    @property
    def prepare(self) -> Callable[..., Prepared | list[Prepared]]:
        """Makes crops of an RGB uint8 image (H, W, 3). `path` is its file, or "" for an image that comes from no file.

        A method that takes aligned faces also has the arguments `points` and `faces` of
        `face_crops.prepare_face`.

        Raises ImageError for an image that cannot be scored.
        """

    def predict(self, batch: Batch) -> Columns:
        """The results of a batch, in its order."""


class Method(NamedTuple):
    """A row of `METHODS`."""

    weights: str
    """Default weights: a name of `model/weights.py`."""
    network: type[Any]
    """The class that `model.load` makes of the method's checkpoints."""
    scoring: Callable[..., Scoring]
    """(network, dtype, device, alignment, **options) -> the method on that device; it may change the network."""
    range: tuple[float, float] | None = None
    """Lowest and highest possible quality; None when it has no bounds."""
    aligned: bool = True
    """Whether it takes 112x112 crops that are aligned to the ArcFace template, or pictures of any kind."""
    crops: int = 1
    """K of `Prepared.crops`: default batch sizes are divided by it."""
    axes: tuple[str, ...] = ()
    """The axes of `model.prompts.AXES` that it gives probabilities of."""
    options: tuple[str, ...] = ()
    """Names of the options that `scoring` takes besides, as `Scorer` and inference.py name them."""
