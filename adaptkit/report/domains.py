"""Rows that compare two domains: their images, and what a layer makes of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

Vectors = NDArray[np.float32] | NDArray[np.float64]
Figures = Mapping[str, NDArray[np.float64]]  # name -> one an image

IMAGES = "feature:images"  # the scope of what is said of images without a model
PERMUTATIONS = 199
_CONSTANT = 1e-12  # the standard deviation of a figure that does not vary


def feature_rows(
    scope: str, source: Vectors, before: Vectors, after: Vectors | None, *, seed: int = 0
) -> Iterator[Row]:
    """Yield each metric between source and target, before adapting and after it.

    A metric with a test is followed by its p-values, as "<metric>_p": of "the target's features are
    distributed as the source's", not of the change. n is the number of the target's rows. Metrics
    that so few rows do not have are left out (see `unknown_metrics`).

    Args:
        scope: of the rows, ``feature:<layer>``.
        source: shape (N, D), the source model on source data.
        before: shape (M, D), the source model on the target.
        after: shape (M, D), the adapted model on the target; None where there is none. Where it is
            `before` itself, nothing is computed twice.
        seed: of regroupings, projections and folds.
    """
    unknown = unknown_metrics(len(source), len(before))
    for name, metric in _METRICS.items():
        if name in unknown:
            continue
        first = metric.of(source, before, seed)
        second = first if after is before else None
        if after is not None and after is not before:
            second = metric.of(source, after, seed)
        then = (None, None) if second is None else (second.value, second.p_value)
        yield _row(name, scope, first.value, then[0], len(before))
        if first.p_value is not None:
            yield _row(f"{name}_p", scope, first.p_value, then[1], len(before))


def unknown_metrics(n: int, m: int) -> list[str]:
    """Return the metrics that need more rows than n of one domain and m of the other.

    >>> unknown_metrics(100, 5)
    ['proxy_a_distance', 'c2st_auc']
    """
    return [name for name, metric in _METRICS.items() if min(n, m) < metric.least]


def input_rows(
    source: Figures, before: Figures, after: Figures | None = None, *, seed: int = 0
) -> Iterator[Row]:
    """Yield how far images lie from the source's: one figure at a time, then all together.

    The former are those of `figure_rows`. The latter, of scope "feature:images", are those of
    `feature_rows` with an image's figures for its features, in the source's standard deviations.

    Args:
        source: figures of the source's images, as from `image_figures`.
        before: of the target's.
        after: of the target's as the adapted model takes them; by default the same, since AdaBN
            does not change the images.
        seed: of regroupings, projections and folds.
    """
    yield from figure_rows(source, before, after)
    names = [name for name in source if name in before]
    mean = np.array([source[name].mean() for name in names])
    spread = np.array([source[name].std() for name in names])
    spread[spread <= _CONSTANT] = 1.0

    def vectors(figures: Figures) -> NDArray[np.float64]:
        return np.asarray((np.stack([figures[n] for n in names], axis=1) - mean) / spread)

    y = vectors(before)
    z = y if after is None else vectors(after)
    yield from feature_rows(IMAGES, vectors(source), y, z, seed=seed)


def figure_rows(source: Figures, before: Figures, after: Figures | None = None) -> Iterator[Row]:
    """Yield how far each figure of the images moved, in standard deviations of the source's.

    "input_shift" is (mean_target − mean_source) / σ_source, or unknown where the source's does not
    vary; "input_shift_p" is Kolmogorov and Smirnov's p-value of "both are distributed alike". The
    arguments are as for `input_rows`; a figure may be of other images than the next.
    """
    for name, values in source.items():
        if not len(values) or not len(before.get(name, ())):
            continue
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        pair = before[name], (after or before)[name]
        gaps = [float(v.mean() - values.mean()) for v in pair]
        first, second = (gap / spread if spread > _CONSTANT else None for gap in gaps)
        scope, n = f"{IMAGES}.{name}", len(pair[0])
        yield _row("input_shift", scope, first, second, n)
        first, second = (ks_fraction(values[:, None], v[:, None]).p_value for v in pair)
        yield _row("input_shift_p", scope, first, second, n)


def _row(name: str, scope: str, before: float | None, after: float | None, n: int) -> Row:
    change = None if before is None or after is None else after - before
    return Row(name, scope, before, after, change, n=n)


def _clipped(x: Vectors, y: Vectors, seed: int) -> ShiftResult:
    found = proxy_a_distance(x, y, seed=seed)
    return ShiftResult(min(max(found.value, 0.0), 2.0), None, found.n, found.m)


class _Metric(NamedTuple):
    """A metric of two samples and a seed, and how many rows of each it needs."""

    of: Callable[[Vectors, Vectors, int], ShiftResult]
    least: int


_METRICS: Mapping[str, _Metric] = {
    "mmd2": _Metric(lambda x, y, seed: mmd2(x, y, permutations=PERMUTATIONS, seed=seed), 2),
    "energy": _Metric(lambda x, y, seed: energy(x, y, permutations=PERMUTATIONS, seed=seed), 1),
    "sliced_wasserstein": _Metric(lambda x, y, seed: sliced_wasserstein(x, y, seed=seed), 1),
    "frechet": _Metric(lambda x, y, _: frechet(x, y), 2),
    "coral": _Metric(lambda x, y, _: coral(x, y), 2),
    "proxy_a_distance": _Metric(_clipped, 10),
    "c2st_auc": _Metric(lambda x, y, seed: c2st_auc(x, y, seed=seed), 10),
    "ks_fraction": _Metric(lambda x, y, _: ks_fraction(x, y), 1),
}
