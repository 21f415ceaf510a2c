"""Scoring face images: `Scorer("clib-fiqa").score("face.jpg")` gives a `Score` with its reasons."""

from .models import Model, list_models
from .score import Score
from .scorer import Scorer

__all__ = ["Model", "Score", "Scorer", "list_models"]
