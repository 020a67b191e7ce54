"""In how many features two samples differ, one feature at a time."""

import warnings
from typing import Literal

import numpy as np
import scipy
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.shift.result import LEAST_P, Sample, ShiftResult, checked, wide

_EXACT_UP_TO = 10_000  # pairs of rows; beyond, the asymptotic p-value is as good


def ks_fraction(x: Sample, y: Sample, *, level: float = 0.05) -> ShiftResult:
    """Return the share of features whose distributions differ, at a false discovery rate.

    Each feature is tested by Kolmogorov and Smirnov's two-sample test, and the p-values are
    adjusted by Benjamini and Hochberg: of the features counted, `level` are expected to be counted
    wrongly. Without unit, 0 to 1; 0 in 1 − level of all cases for samples of one distribution.
    Biased downwards where they differ: the fewer rows, the fewer features are found.

    Args:
        x: shape (N, D); an array or a tensor.
        y: shape (M, D).
        level: the false discovery rate, between 0 and 1.

    Returns:
        ShiftResult; p_value is the smallest adjusted one (Simes' test of all features together,
        valid where they are independent or positively dependent).

    Raises:
        DataError: the samples are not two finite tables of as many features, or `level` is not
            between 0 and 1.

    O(D·(N + M)·log(N + M)) time.

    Source: Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57; Simes 1986, Biometrika 73.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(2, 100, 4))
    >>> y[:, 0] += 3
    >>> float(ks_fraction(x, y))
    0.25
    """
    a, b = checked(x, y, least=1)
    if not 0 < level < 1:
        raise DataError(f"Expected level to be between 0 and 1, got {level}")
    p_values = [_p_value(a[:, i], b[:, i]) for i in range(a.shape[1])]
    adjusted = scipy.stats.false_discovery_control(np.clip(p_values, 0, 1))
    found = float(np.mean(adjusted <= level))
    return ShiftResult(found, float(adjusted.min()), len(a), len(b))


def _p_value(x: Tensor, y: Tensor) -> float:
    method: Literal["exact", "asymp"] = "exact" if len(x) * len(y) <= _EXACT_UP_TO else "asymp"
    with warnings.catch_warnings():
        # That it took the asymptotic p-value, as it does where the exact one overflows.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        found = scipy.stats.ks_2samp(wide(x).numpy(), wide(y).numpy(), method=method)
    return max(float(found.pvalue), LEAST_P)
