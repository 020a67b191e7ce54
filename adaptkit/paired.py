"""Intervals and tests for two measurements on the same samples; the distributions are scipy's."""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Change(NamedTuple):
    """A difference after − before, its 95% interval and p-value; None where there is none."""

    change: float
    ci_low: float | None
    ci_high: float | None
    p_value: float | None


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927), for n of 1 or more.

    >>> [round(v, 3) for v in wilson(8, 10)]
    [0.49, 0.943]
    """
    interval = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def proportion_change(before: Bools, after: Bools, *, level: float = 0.95) -> Change:
    """Compare two proportions on the same samples, each sample right or wrong before and after.

    The interval is Newcombe's (1998, "Improved confidence intervals for the difference between
    binomial proportions based on paired data", method 10): square-and-add of the two Wilson
    intervals, with the correlation of the pairs. The p-value is McNemar's, exact: under "no change"
    the samples that changed side split evenly.

    Args:
        before: shape (n,), n of 1 or more.
        after: shape (n,), of the same samples in the same order.
        level: of the interval.

    >>> before = np.array([True] * 5 + [False] * 5)
    >>> proportion_change(before, ~before).p_value
    1.0
    """
    n = len(before)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p_value = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0

    first, second = (both + lost) / n, (both + won) / n
    low_1, high_1 = wilson(both + lost, n, level=level)
    low_2, high_2 = wilson(both + won, n, level=level)
    correlation = _phi(both, lost, won, neither)
    difference = second - first

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0)))

    low = difference - reach(second - low_2, high_1 - first)
    high = difference + reach(high_2 - second, first - low_1)
    return Change(difference, max(low, -1.0), min(high, 1.0), float(p_value))


def mean_change(before: Floats, after: Floats, *, level: float = 0.95) -> Change:
    """Compare two means on the same samples: Student's t on the differences.

    Interval and p-value are None for fewer than two samples or where all differ by the same.
    """
    difference = after - before
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    # A spread of rounding errors alone is none.
    if error <= 1e-12 * max(float(np.abs(difference).max()), 1e-300):
        return Change(mean, None, None, None)
    student = scipy.stats.t(n - 1)
    reach = float(student.ppf((1 + level) / 2)) * error
    return Change(mean, mean - reach, mean + reach, float(2 * student.sf(abs(mean) / error)))


def _phi(both: int, lost: int, won: int, neither: int) -> float:
    """Correlation of the pairs, with Newcombe's correction for continuity where it is positive."""
    product = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if not product:
        return 0.0
    cross = both * neither - lost * won
    if cross > 0:
        cross = max(cross - (both + lost + won + neither) / 2, 0)  # type: ignore[assignment]
    return float(cross / product**0.5)
