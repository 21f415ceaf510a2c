"""Scoring face images: `Scorer("clib-fiqa").score("face.jpg")` gives a `Score` with its reasons."""

from .score import Score
from .scorer import Scorer

__all__ = ["Score", "Scorer"]
