"""Percentiles: how a quality compares with the qualities of a named set of images.

Qualities of different networks have different scales, so "is 0.63 good?" can only be answered by a comparison. The
table is the entry `percentiles` of a checkpoint's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

POINTS = 101  # quantiles at 0 %, 1 %, ... 100 %


def discard_threshold(quality: np.ndarray, discard: float) -> float:
    """The highest quality that discards at most the share `discard`, in [0, 1), of these qualities (N,), all finite.

    What lies at the threshold is kept, so that equal qualities may mean that fewer are discarded than wanted. -inf
    without qualities.
    """
    if not len(quality):
        return float("-inf")
    position = discard_position(len(quality), discard)
    return float(np.partition(quality, position)[position])


def discard_position(count: int, discard: float) -> int:
    """How many of `count` a share discards, rounded down."""
    return int(discard * count + 1e-9)  # 0.29 * 100 is 28.999...


@dataclass(frozen=True)
class Percentiles:
    """The quantiles of a network's qualities on a set of images, ascending."""

    set: str
    images: int
    quality: tuple[float, ...]  # (101,)

    @classmethod
    def of_set(cls, name: str, quality: np.ndarray) -> Percentiles:
        """From the qualities (N,) of the set's images. Raises ValueError without images, or for values not finite."""
        if not len(quality) or not np.isfinite(quality).all():
            raise ValueError(f"percentiles of {name!r} need the qualities of at least one image, and finite ones")
        quantiles = np.quantile(quality, np.linspace(0, 1, POINTS))
        return cls(name, len(quality), tuple(float(f"{value:.7g}") for value in quantiles))

    def percentile(self, quality: float) -> float:
        """The share of the set that scores below `quality`, in percent, from 0 to 100."""
        return float(self.percentiles(np.array([quality]))[0])

    def percentiles(self, quality: np.ndarray) -> np.ndarray:
        """`percentile` of each quality of a column: (N,) -> (N,)."""
        return np.interp(quality, self.quality, np.linspace(0, 100, POINTS))

    def threshold(self, discard: float) -> float:
        """The quality that the share `discard`, in [0, 1], of the set scores below."""
        return float(np.interp(100 * discard, np.arange(POINTS), self.quality))

    def to_json(self) -> str:
        """The entry of the metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Percentiles | None:
        """The entry of a checkpoint's metadata; None when it has none. Raises ValueError when it is damaged."""
        if "percentiles" not in metadata:
            return None
        try:
            fields = json.loads(metadata["percentiles"])
            name, images = str(fields["set"]), int(fields["images"])
            quality = np.array(fields["quality"], np.float64)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError("the percentiles in the metadata have not the form of to_json") from error
        if quality.shape != (POINTS,) or not np.isfinite(quality).all() or (np.diff(quality) < 0).any():
            raise ValueError(f"the percentiles in the metadata are not {POINTS} ascending numbers")
        return cls(name, images, tuple(quality.tolist()))
