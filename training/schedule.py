"""Learning rates by epoch, as pure functions, so that a resumed run needs to remember nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence


def half_cosine(lr: float, done: float) -> float:
    """From `lr` at 0 along half a cosine to 0 at `done` = 1; beyond that it rises again."""
    return lr * (1 + math.cos(math.pi * done)) / 2


def cosine_wave(epoch: int, lr: float, period: int) -> tuple[float, float]:
    """(used, announced) learning rate of the epoch, which counts from 0.

    The rate falls from `lr` in `period` epochs along half a cosine, rises again, and so on. Where it reaches 0 the
    published code announces that epoch with 0 and then takes the next point of the wave.
    """
    skipped = 0 if epoch < period else 1 + (epoch - period) // (2 * period - 1)  # zeros of the wave up to here
    used = half_cosine(lr, (epoch + skipped) / period)
    follows_zero = epoch >= period and (epoch - period) % (2 * period - 1) == 0
    return used, 0.0 if follows_zero else used


def milestones(epoch: int, lr: float, falls: Sequence[int]) -> float:
    """`lr`, falling to a tenth after each of the epochs in `falls`; `epoch` counts from 0."""
    return lr * 0.1 ** sum(epoch >= fall for fall in falls)
