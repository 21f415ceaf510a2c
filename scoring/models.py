"""The known models that score: what they give, what they take, and whether their files are here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model import weights
from model.loading import SYSTEMS

from .methods import METHODS


@dataclass(frozen=True)
class Model:
    """Known weights of a method. `Scorer(name)` scores with them when `present`."""

    name: str
    method: str
    range: tuple[float, float] | None
    """Lowest and highest possible quality, None when it has no bounds."""
    higher_is_better: bool
    licence: str
    image_size: int | None
    """Side, in pixels, of the square images that the network takes; the scorer resizes to it."""
    aligned: bool
    """Whether it takes faces that are aligned to the ArcFace template; the scorer aligns other pictures."""
    file: Path
    present: bool
    bytes: int | None
    """Size of the file, None when it is not present."""


def list_models() -> list[Model]:
    """All known weights that score, in the order of `model.weights.WEIGHTS`."""
    models = []
    for known in weights.WEIGHTS:
        network, file = SYSTEMS.get(known.system), weights.FOLDER / known.file
        for name, method in METHODS.items():
            if method.network is network:
                facts = name, method.range, True, known.licence, known.image_size, method.aligned
                models.append(Model(known.name, *facts, file, file.is_file(), _bytes_of(file)))
    return models


def _bytes_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
