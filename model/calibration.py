"""Calibrated probabilities of the quality factors.

The focal loss leaves a network too cautious: a level with a probability of 0.8 is nearly always the true one.
Temperature scaling (Guo et al., ICML 2017) mends that after training: p' = softmax(scale * log p). Here each level has
a scale of its own, which counts where that level is the most probable one. So a face keeps its most probable levels,
and a level that is named too often gets a low probability without another one being named. The values are the entry
`calibration` of a checkpoint's metadata, and are fitted by `recipes/default_model/calibrate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .prompts import AXES, FACTORS

LEAST = 1e-12  # log of a probability that is rounded to 0


@dataclass(frozen=True)
class Scaling:
    """The calibration of one factor."""

    scales: tuple[float, ...]
    """Above 0; for each level the scale where it is the most probable one. Above 1 makes probabilities bolder."""
    images: int
    """How many faces it was fitted on."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of the factors of one network."""

    set: str
    """The faces it was fitted on."""
    factors: Mapping[str, Scaling]

    def apply(self, axes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Axes with their probabilities (N, levels); those of the factors are calibrated."""
        return {
            axis: calibrated(levels, self.factors[axis].scales) if axis in self.factors else levels
            for axis, levels in axes.items()
        }

    def to_json(self) -> str:
        """The entry of the metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Calibration | None:
        """The entry of a checkpoint's metadata; None when it has none. Raises ValueError when it is damaged."""
        if "calibration" not in metadata:
            return None
        try:
            fields = json.loads(metadata["calibration"])
            factors = {
                factor: Scaling(tuple(map(float, one["scales"])), int(one["images"]))
                for factor, one in fields["factors"].items()
            }
            for factor, one in factors.items():
                if len(one.scales) != len(AXES[factor]) or factor not in FACTORS or min(one.scales) <= 0:
                    raise ValueError(f"{factor} has the scales {one.scales}")
            return cls(fields["set"], factors)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"the calibration in the metadata of the weights is damaged: {error}") from None


def calibrated(probabilities: Tensor, scales: tuple[float, ...]) -> Tensor:
    """softmax(scale * log p) of probabilities (N, levels), with the scale of each row's most probable level."""
    logs = probabilities.clamp_min(LEAST).log()
    scale = torch.tensor(scales, dtype=logs.dtype, device=logs.device)[logs.argmax(dim=1)]
    return (scale[:, None] * logs).softmax(dim=1)
