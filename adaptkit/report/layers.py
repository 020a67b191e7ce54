"""Rows on the norm layers: how far their statistics lie from the target's, how sure those are."""

from collections.abc import Iterator, Mapping
from math import isfinite

import numpy as np
from torch import Tensor

from adaptkit.estimation import Statistics
from adaptkit.norms import Stored
from adaptkit.report.table import Row
from adaptkit.shift import symmetric_kl

# Below this a variance counts as this, where a layer has no eps of its own.
_LEAST_VARIANCE = 1e-12


def layer_rows(
    before: Mapping[str, Stored],
    after: Mapping[str, Stored],
    target: Mapping[str, Stored],
    target_after: Mapping[str, Stored] | None = None,
) -> Iterator[Row]:
    """Yield how far each layer's statistics lie from the target's, before and after.

    `target_after` is what the target looks like after adapting, where that changes the images and
    not the layers.
    """
    then = target if target_after is None else target_after
    names = [name for name in target if name in before and name in after and name in then]
    if not names:
        return
    for metric, of in _MOVES.items():
        pairs = {n: (of(before[n], target[n]), of(after[n], then[n])) for n in names}
        first, second = (float(np.mean(values)) for values in zip(*pairs.values(), strict=True))
        yield Row(metric, "all", first, second, second - first, n=len(pairs))
        for name, (a, b) in pairs.items():
            yield Row(metric, f"layer:{name}", a, b, b - a)


def target_of(after: Mapping[str, Stored], statistics: Statistics | None) -> Mapping[str, Stored]:
    """Return the target's statistics, rounded as a model stores them."""
    if statistics is None:
        return after
    return {
        name: Stored(
            moments.mean.to(after[name].mean),
            moments.variance().to(after[name].mean),
            after[name].eps,
        )
        for name, moments in statistics.items()
    }


def error_rows(statistics: Statistics | None) -> Iterator[Row]:
    """Yield the relative standard errors of the target's statistics."""
    if statistics is None:
        return
    errors = {name: value for name, value in statistics.errors().items() if isfinite(value)}
    if errors:
        worst, n = max(errors.values()), statistics.samples
        yield Row("statistic_se", "all", None, worst, None, n=n)
        for name, value in errors.items():
            yield Row("statistic_se", f"layer:{name}", None, value, None, n=n)


def _divergence(stored: Stored, target: Stored) -> float:
    """In the units in which the layer divides: with its eps, which also covers dead channels."""
    a, b = variances(stored, target)
    return float(symmetric_kl(stored.mean, a, target.mean, b))


def _mean_shift(stored: Stored, target: Stored) -> float:
    a, _ = variances(stored, target)
    moved = (target.mean.double().cpu() - stored.mean.double().cpu()) / a.double().cpu().sqrt()
    return float(moved.square().mean().sqrt())


def _log_var_shift(stored: Stored, target: Stored) -> float:
    a, b = (variance.double().cpu() for variance in variances(stored, target))
    return float((b.log() - a.log()).square().mean().sqrt())


def variances(stored: Stored, target: Stored) -> tuple[Tensor, Tensor]:
    """Return both variances with the layer's eps, in whose units it divides."""
    eps = max(stored.eps, _LEAST_VARIANCE)
    return stored.variance + eps, target.variance + eps


_MOVES = {
    "symmetric_kl": _divergence,
    "mean_shift": _mean_shift,
    "log_var_shift": _log_var_shift,
}
