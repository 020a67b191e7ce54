"""Calibration errors: how far a model's confidence lies from how often it is right."""

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bins = NDArray[np.int64]

BINS = 15
_LEAST = 1.645  # standard errors below a gap that its own size is taken to be at least


def equal_width(confidence: Floats) -> Bins:
    """Return each sample's bin of confidence: (0, 1/15] is 0, (1/15, 2/15] is 1, and so on.

    >>> equal_width(np.array([0.01, 1 / 15, 0.5, 1.0])).tolist()
    [0, 0, 7, 14]
    """
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def equal_mass(confidence: Floats, known: Bools) -> Bins:
    """Return each sample's bin, with as many of the known in each; equal confidences share one.

    >>> bins = equal_mass(np.linspace(0.1, 1.0, 45), np.ones(45, dtype=bool))
    >>> np.bincount(bins).tolist() == [3] * 15
    True
    """
    if not known.any():
        return np.zeros(len(confidence), dtype=np.int64)
    inner = np.quantile(confidence[known], np.arange(1, BINS) / BINS)
    return np.searchsorted(inner, confidence).astype(np.int64)


def most_bias(confidence: Floats, correct: Bools, bins: Bins) -> float:
    """Return by about how much, at most, a calibration error exceeds the population's on average.

    The error is Σ_b |g_b|·n_b / n with g_b the mean of confidence − correct in bin b. With σ_b the
    standard error of g_b and μ_b what it estimates, the mean of |g_b| exceeds |μ_b| by

        σ_b·(2·φ(m) − 2·m·Φ(−m)),  m = |μ_b| / σ_b

    which is 0.8·σ_b for a calibrated bin and next to nothing for a gap beyond doubt. |μ_b| is taken
    to be no less than |g_b| − 1.645·σ_b, and σ_b to be no less than that of a calibrated bin.

    Args:
        confidence: shape (n,), of samples that have one.
        correct: shape (n,).
        bins: shape (n,).

    Returns:
        0 to about 0.4; 0 where there are no samples. O(n) time.

    >>> most_bias(np.full(100, 0.5), np.arange(100) < 50, np.zeros(100, dtype=int)).__round__(3)
    0.04
    """
    count = np.bincount(bins)
    present = count > 0
    n_b = np.maximum(count, 1)
    gap = confidence - correct
    g_b = np.bincount(bins, gap) / n_b
    spread = np.bincount(bins, np.square(gap - g_b[bins])) / n_b
    calibrated = np.bincount(bins, confidence * (1 - confidence)) / n_b
    sigma = np.sqrt(np.maximum(spread, calibrated) / n_b)[present]
    least = np.maximum(np.abs(g_b[present]) - _LEAST * sigma, 0)
    m = np.divide(least, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    normal = scipy.stats.norm
    bias = sigma * (2 * normal.pdf(m) - 2 * m * normal.sf(m))
    return float(bias @ count[present]) / max(len(bins), 1)
