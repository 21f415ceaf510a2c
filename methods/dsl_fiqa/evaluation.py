"""How well predictions agree with mean opinion scores: the usual figures, each with a bootstrap interval."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from model.statistics import correlation, rank_correlation


def agreement(
    predicted: np.ndarray, opinions: np.ndarray, replicates: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Each of `figures` as {"value": x, "interval": [low, high]}: 95 %, over pictures drawn with replacement.

    predicted, opinions: (N,). The logistic is fitted once, to all pictures, and not to each replicate. Raises
    ValueError for fewer than three pictures, or when all predictions or all opinions are equal.
    """
    if len(predicted) < 3 or np.ptp(predicted) == 0 or np.ptp(opinions) == 0:
        raise ValueError("agreement needs at least three pictures, of which not all predictions or opinions are equal")
    curved = through_logistic(predicted, opinions)
    values = figures(predicted, opinions, curved)
    rng = np.random.default_rng((seed, len(predicted)))
    drawn = []
    for _ in range(replicates):
        rows = rng.integers(0, len(predicted), len(predicted))
        drawn.append(figures(predicted[rows], opinions[rows], curved[rows]))
    intervals = {
        name: np.percentile([replicate[name] for replicate in drawn], (2.5, 97.5)).tolist() if drawn else None
        for name in values
    }
    return {name: {"value": value, "interval": intervals[name]} for name, value in values.items()}


def figures(predicted: np.ndarray, opinions: np.ndarray, curved: np.ndarray) -> dict[str, float]:
    """SRCC and PLCC, PLCC of the predictions after the logistic (`curved`), and both root mean squared errors."""
    return {
        "srcc": rank_correlation(predicted, opinions),
        "plcc": correlation(predicted, opinions),
        "plcc_logistic": correlation(curved, opinions),
        "rmse": float(np.sqrt(np.mean((predicted - opinions) ** 2))),
        "rmse_logistic": float(np.sqrt(np.mean((curved - opinions) ** 2))),
    }


def through_logistic(predicted: np.ndarray, opinions: np.ndarray) -> np.ndarray:
    """The predictions (N,) after the four-parameter logistic that brings them nearest to the opinions.

    Where the fit does not converge, after the logistic of the start values. Raises ImportError without scipy.
    """
    try:
        from scipy.optimize import curve_fit
    except ImportError as error:
        raise ImportError("the logistic is fitted by scipy: pip install scipy") from error
    x = (predicted - predicted.min()) / np.ptp(predicted)  # no parameter starts near 0, where the solver's steps vanish
    start = (opinions.max(), opinions.min(), x.mean(), x.std())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a covariance that cannot be estimated
        try:
            found = curve_fit(logistic, x, opinions, start, maxfev=10_000)[0]
        except RuntimeError:  # it did not converge
            found = np.array(start)
        return logistic(x, *found)


def logistic(x: np.ndarray, top: float, bottom: float, middle: float, width: float) -> np.ndarray:
    """The four-parameter logistic of image quality assessment: from `bottom` to `top` around `middle`."""
    return bottom + (top - bottom) / (1 + np.exp(-(x - middle) / abs(width)))
