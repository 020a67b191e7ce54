"""The target's mix of classes from the model's own predictions, where its inputs do not show it.

A mix is sought as a fixed point: shares that the model predicts behind statistics corrected for
those same shares. There can be several, so it is sought from three sides, and believed where two
come to nearly the same, or all three to about the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptkit.estimation.trial import Trial
from adaptkit.guard.calibration import Calibration
from adaptkit.guard.class_features import distance
from adaptkit.guard.view import Floats, View
from adaptkit.guard.ways import Corrected, Early

ROUNDS = 8
STEP = 0.7  # of the way to what is predicted, in a round
STILL = 0.005  # change of the shares, summed, below which the rounds end
SOFT = 4  # rounds that follow mean probabilities where the start is unsure; then counts
ALL_SAME = 0.9  # of the predictions alike: three starts have come to the same
TWO_SAME = 0.95  # the same of two, which can be alike by chance more easily
TRUST = 0.3  # predictions alike with plain AdaBN's, below which nothing is believed
BASE, SLOPE = 1.1, 0.5  # distance allowed against plain AdaBN's, the less the more they differ


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A mix of classes that reproduces itself.

    Args:
        way: statistics corrected for it.
        view: of the target behind them.
        distance: of the features to the source's classes.
    """

    way: Corrected
    view: View
    distance: float


@dataclass(frozen=True, eq=False)
class Agreed:
    """A fixed point that several starts come to.

    Args:
        point: that one.
        support: how many of the three starts came to it.
    """

    point: FixedPoint
    support: int


def fixed_points(
    trial: Trial, calibration: Calibration, source: View
) -> tuple[FixedPoint, FixedPoint, FixedPoint]:
    """Return those that are come to from the source's mix, early layers, and its predictions."""
    early = Early().run(trial).probabilities.mean(0)
    return (
        _followed(trial, calibration, calibration.moments.shares.numpy(), 0),
        _followed(trial, calibration, early, SOFT),
        _followed(trial, calibration, source.shares, 0),
    )


def agreed(points: Sequence[FixedPoint], full: View, limit: float) -> Agreed | None:
    """Return the fixed point that most starts come to and that fits, or None.

    Args:
        points: where the starts led.
        full: with plain AdaBN.
        limit: the distance of its features to the source's classes.
    """
    best: Agreed | None = None
    for point in points:
        support = _support(point, points)
        alike = full.agreement(point.view)
        allowed = limit * (BASE - SLOPE * (1 - alike))
        if support < 2 or alike < TRUST or point.distance > allowed:
            continue
        nearer = best is None or (support, -point.distance) > (best.support, -best.point.distance)
        best = Agreed(point, support) if nearer else best
    return best


def _support(point: FixedPoint, points: Sequence[FixedPoint]) -> int:
    alike = np.array([point.view.agreement(other.view) for other in points])
    return len(points) if (alike >= ALL_SAME).all() else int((alike >= TWO_SAME).sum())


def _followed(trial: Trial, calibration: Calibration, shares: Floats, soft: int) -> FixedPoint:
    """Follow q ← q + 0.7·(p − q), p being the shares predicted behind a correction for q."""
    for number in range(ROUNDS + 1):
        way = Corrected(calibration.moments, shares)
        view = way.run(trial)
        predicted = view.probabilities.mean(0) if number < soft else view.shares
        if number == ROUNDS or np.abs(predicted - shares).sum() < STILL:
            break
        shares = shares + STEP * (predicted - shares)
    return FixedPoint(way, view, distance(calibration.features, view.seen.features))
