"""The target's mix of classes from the model's own predictions, where its inputs do not show it.

A mix is sought as a fixed point: shares that the model predicts behind statistics corrected for
those same shares. There can be several, so it is sought from three sides, and believed where two
come to the same.
"""

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
SAME = 0.9  # of the predictions alike: two starts have come to the same
TRUST = 0.3  # predictions alike with plain AdaBN's, below which nothing is believed
BASE, SLOPE = 1.1, 0.5  # distance allowed against plain AdaBN's, the less the more they differ


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A mix of classes that reproduces itself.

    Args:
        way: statistics corrected for it.
        view: of the target behind them.
        distance: of the features to the source's classes.
        support: how many of the three starts came to it.
    """

    way: Corrected
    view: View
    distance: float
    support: int


def agreed(trial: Trial, calibration: Calibration, source: View, full: View) -> FixedPoint | None:
    """Return the fixed point that most starts come to and that fits, or None."""
    starts = (
        (calibration.moments.shares.numpy(), 0),
        (Early().run(trial).probabilities.mean(0), SOFT),
        (source.shares, 0),
    )
    found = [_followed(trial, calibration, shares, soft) for shares, soft in starts]
    limit = distance(calibration.features, full.seen.features)
    best: FixedPoint | None = None
    for way, view in found:
        support = sum(view.agreement(other) >= SAME for _, other in found)
        alike = full.agreement(view)
        off = distance(calibration.features, view.seen.features)
        if support < 2 or alike < TRUST or off > limit * (BASE - SLOPE * (1 - alike)):
            continue
        if best is None or (support, -off) > (best.support, -best.distance):
            best = FixedPoint(way, view, off, support)
    return best


def _followed(
    trial: Trial, calibration: Calibration, shares: Floats, soft: int
) -> tuple[Corrected, View]:
    """Follow q ← q + 0.7·(p − q), p being the shares predicted behind a correction for q."""
    for number in range(ROUNDS + 1):
        way = Corrected(calibration.moments, shares)
        view = way.run(trial)
        predicted = view.probabilities.mean(0) if number < soft else view.shares
        if number == ROUNDS or np.abs(predicted - shares).sum() < STILL:
            break
        shares = shares + STEP * (predicted - shares)
    return way, view
