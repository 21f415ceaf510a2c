"""Calibrated probabilities of the quality factors.

The focal loss leaves a network too cautious: a level with a probability of 0.8 is nearly always the true one.
Temperature scaling (Guo et al., ICML 2017) mends that after training: p' = softmax(scale * log p). Here each level has
a scale of its own, which counts where that level is the most probable one. So the scales keep the most probable level,
and a level that is named too often gets a low probability without another one being named. Before that, each level may
have a weight, as for other prior probabilities (Saerens et al., Neural Computation 2002): it moves the border between
the levels to where both kinds of error are wanted, so another level may be named. The values are the entry
`calibration` of a checkpoint's metadata, made by `recipes/default_model/calibrate.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
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
    weights: tuple[float, ...] = ()
    """Above 0; what the probability of each level is multiplied by. Empty: 1 for all."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of the factors of one network."""

    set: str
    """The faces it was fitted on."""
    factors: Mapping[str, Scaling]

    def apply(self, axes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Axes with their probabilities (N, levels); those of the factors are calibrated."""
        return {
            axis: calibrated(levels, self.factors[axis]) if axis in self.factors else levels
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
                factor: Scaling(_floats(one["scales"]), int(one["images"]), _floats(one.get("weights", ())))
                for factor, one in fields["factors"].items()
            }
            for factor, one in factors.items():
                if factor not in FACTORS:
                    raise ValueError(f"{factor} is no factor")
                for values in (one.scales, one.weights or one.scales):
                    if len(values) != len(AXES[factor]) or not all(0 < value < math.inf for value in values):
                        raise ValueError(f"{factor} has the numbers {values}")
            return cls(fields["set"], factors)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"the calibration in the metadata of the weights is damaged: {error}") from None


def calibrated(probabilities: Tensor, scaling: Scaling) -> Tensor:
    """softmax(scale * log(weight * p)) of probabilities (N, levels), with the scale of each row's most probable level
    after the weights."""
    logs = probabilities.clamp_min(LEAST).log()
    if scaling.weights:
        logs = logs + torch.tensor(scaling.weights, dtype=logs.dtype, device=logs.device).log()
    scale = torch.tensor(scaling.scales, dtype=logs.dtype, device=logs.device)[logs.argmax(dim=1)]
    return (scale[:, None] * logs).softmax(dim=1)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, values))
