"""Rows that compare two domains: their images, and what a layer makes of them."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adaptkit.report.table import Row
from adaptkit.shift import (
    ShiftResult,
    c2st_auc,
    coral,
    energy,
    frechet,
    ks_fraction,
    mmd2,
    proxy_a_distance,
    sliced_wasserstein,
)

Vectors = NDArray[np.float32]
PERMUTATIONS = 199
FOR_CLASSIFIERS = 10  # rows of each domain


def feature_rows(
    scope: str, source: Vectors, before: Vectors, after: Vectors | None, *, seed: int = 0
) -> Iterator[Row]:
    """Yield each metric between source and target, before adapting and after it.

    A metric with a test is followed by its p-values, as "<metric>_p": of "the target's features are
    distributed as the source's", not of the change. n is the number of the target's rows.

    Args:
        scope: of the rows, ``feature:<layer>``.
        source: shape (N, D), the source model on source data.
        before: shape (M, D), the source model on the target.
        after: shape (M, D), the adapted model on the target; None where there is none.
        seed: of regroupings, projections and folds.
    """
    few = min(len(source), len(before)) < FOR_CLASSIFIERS
    for name, metric in _METRICS.items():
        if few and name in ("proxy_a_distance", "c2st_auc"):
            continue
        first = metric(source, before, seed)
        second = None if after is None else metric(source, after, seed)
        yield _row(name, scope, first.value, None if second is None else second.value, len(before))
        if first.p_value is not None:
            yield _row(
                f"{name}_p",
                scope,
                first.p_value,
                None if second is None else second.p_value,
                len(before),
            )


def input_rows(
    source: Mapping[str, NDArray[np.float64]], target: Mapping[str, NDArray[np.float64]]
) -> Iterator[Row]:
    """Yield how far each figure of the images moved, in standard deviations of the source's.

    "input_shift" is (mean_target − mean_source) / σ_source, or unknown where the source's does not
    vary; its p-value is Kolmogorov and Smirnov's of "both are distributed alike". Adapting does not
    change the images, so there is no "after".
    """
    for name, values in source.items():
        if name not in target or len(values) < 2:
            continue
        spread = float(values.std(ddof=1))
        moved = float(target[name].mean() - values.mean())
        p_value = float(stats.ks_2samp(values, target[name], method="asymp").pvalue)
        yield Row(
            "input_shift",
            f"input:{name}",
            moved / spread if spread > 1e-12 else None,
            None,
            None,
            p_value=p_value,
            n=len(target[name]),
        )


def _row(name: str, scope: str, before: float, after: float | None, n: int) -> Row:
    return Row(name, scope, before, after, None if after is None else after - before, n=n)


def _clipped(x: Vectors, y: Vectors, seed: int) -> ShiftResult:
    found = proxy_a_distance(x, y, seed=seed)
    return ShiftResult(min(max(found.value, 0.0), 2.0), None, found.n, found.m)


_METRICS: Mapping[str, Callable[[Vectors, Vectors, int], ShiftResult]] = {
    "mmd2": lambda x, y, seed: mmd2(x, y, permutations=PERMUTATIONS, seed=seed),
    "energy": lambda x, y, seed: energy(x, y, permutations=PERMUTATIONS, seed=seed),
    "sliced_wasserstein": lambda x, y, seed: sliced_wasserstein(x, y, seed=seed),
    "frechet": lambda x, y, _: frechet(x, y),
    "coral": lambda x, y, _: coral(x, y),
    "proxy_a_distance": _clipped,
    "c2st_auc": lambda x, y, seed: c2st_auc(x, y, seed=seed),
    "ks_fraction": lambda x, y, _: ks_fraction(x, y),
}
