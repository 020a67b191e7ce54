"""The target's mix of classes from the model's own predictions, where its inputs do not show it."""

import numpy as np

from adaptkit.estimation.trial import Trial
from adaptkit.guard.class_moments import ClassMoments
from adaptkit.guard.ways import Corrected

ROUNDS = 8
STEP = 0.7  # of the way to what is predicted, in a round
STILL = 0.005  # change of the shares, summed, below which the rounds end


def fixed_point(trial: Trial, moments: ClassMoments) -> Corrected:
    """Return statistics corrected for shares that the model predicts behind just those.

    Followed from the source's own mix, by q ← q + 0.7·(p − q), p being the shares predicted behind
    a correction for q. There can be other fixed points; whether this one is to be believed is for
    the forecast to tell.

    Args:
        trial: of the model on the target.
        moments: of the source's classes.
    """
    way = Corrected(moments, moments.shares.numpy())
    for _ in range(ROUNDS):
        change = way.run(trial).shares - way.shares
        if np.abs(change).sum() < STILL:
            break
        way = Corrected(moments, way.shares + STEP * change)
    return way
