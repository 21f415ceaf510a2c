"""One optimisation step, as every training takes it."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to try."""
