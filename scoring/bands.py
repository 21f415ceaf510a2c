"""Which table of bands belongs to which weights. `model/bands.py` is the table, docs/reasons.md says how it is made."""

from __future__ import annotations

from pathlib import Path

from model.bands import Bands
from model.checkpoint import sha256_of


def bands_file(weights: Path) -> Path:
    """Where the table of a weight file lies by default: beside it."""
    return weights.with_name(f"bands_{weights.stem}.json")


def bands_of(weights: Path, file: str | Path | None = None) -> Bands | None:
    """The table in `file`, else the one beside the weights; None where there is none for these very weights.

    Raises OSError when `file` does not exist, ValueError when it is no table, or was measured with other weights.
    """
    if file is not None:
        bands = Bands.read(Path(file))
        if bands.weights is not None and bands.weights != (sha256 := sha256_of(weights)):
            raise ValueError(
                f"{file} was measured with the weights {bands.weights[:12]}…, not with {weights} ({sha256[:12]}…): "
                "measure these with `evaluate.py bands`"
            )
        return bands
    beside = bands_file(weights)
    if not beside.is_file():
        return None
    bands = Bands.read(beside)
    return bands if bands.weights == sha256_of(weights) else None  # new weights: the old limits mean nothing
