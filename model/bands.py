"""Bands of quality, low, medium and high, whose limits were measured as rates of recognition errors.

A table of bands is a JSON file. `evaluate.py bands` writes it from pairs, scores and embeddings of a recognition model,
and `scoring/bands.py` reads it. Qualities of different weights have different scales, so a table names the sha256 of
the weights whose qualities it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import write_text

BANDS = ("low", "medium", "high")


@dataclass(frozen=True)
class MeasuredBand:
    """What was measured of the mated pairs whose worse image lies in a band. Intervals are 95 % bootstrap intervals
    over people."""

    band: str
    lowest: float | None
    """The quality at which the band begins; None for low."""
    lowest_ci: Sequence[float] | None
    wanted: float | None
    """The FNMR that was wanted of all pairs whose images are both in this band or above; None for low."""
    pairs: int
    share: float
    """Of the mated pairs."""
    fnmr: float | None
    """Of the pairs in the band; None where there are none."""
    fnmr_ci: Sequence[float] | None
    fnmr_from: float | None
    """Of the pairs in the band or above."""
    fnmr_from_ci: Sequence[float] | None


@dataclass(frozen=True)
class Bands:
    """A measured table of bands."""

    set: str
    """Of what it was measured."""
    weights: str | None
    """sha256 of the weights that gave the scores; None when it was not told."""
    fmr: float
    fr: Mapping[str, str | None]
    """The recognition models with their sha256; the FNMR is the mean over them."""
    measured: Sequence[MeasuredBand]
    """low, medium and high."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Inputs with their sha256, versions, settings, date."""

    def band(self, quality: float) -> str:
        """low, medium or high."""
        reached = [one.band for one in self.measured if one.lowest is None or quality >= one.lowest]
        return reached[-1]

    def lowest(self, band: str) -> float:
        """The quality at which a band begins, -inf for low."""
        lowest = {one.band: one.lowest for one in self.measured}[band]
        return float("-inf") if lowest is None else lowest

    def write(self, path: Path) -> None:
        """Write the table atomically."""
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Bands:
        """Raises OSError when there is no such file, ValueError when it holds no table of bands."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            bands = cls(**found | {"measured": tuple(MeasuredBand(**one) for one in found["measured"])})
            limits = [one.lowest for one in bands.measured]
            fits = tuple(one.band for one in bands.measured) == BANDS and limits[0] is None
            if not fits or not float(limits[1]) <= float(limits[2]):  # type: ignore[arg-type]
                raise ValueError("expected low, medium and high, with ascending limits")
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no table of bands as `evaluate.py bands` writes it ({error})") from None
        return bands
