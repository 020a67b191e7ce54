"""What shows without labels whether a model gains by a target's statistics."""

import itertools
import math
from collections.abc import Mapping

import numpy as np

from adaptkit.guard.calibration import Calibration
from adaptkit.guard.class_features import distance
from adaptkit.guard.typicality import typical
from adaptkit.guard.view import View

_LEAST = 0.03  # added to a severity before its logarithm is taken
_TINY = 1e-6  # of a distance


def evidence(views: Mapping[str, View], shift: float) -> dict[str, float]:
    """Return figures of a target, with names; of K classes and N samples.

    - "log samples", log N, and "severity", log(`shift` + 0.03)
    - for every two views "a = b", how much of their predictions is alike, beyond chance:
      (share − 1/K) / (1 − 1/K)
    - for every view "a sure", the mean of the largest probability, beyond chance likewise;
      "a unsure", the mean entropy of the probabilities over log K; and "a classes", how many
      classes are predicted, effectively, of the min(K, N) that could be.

    Args:
        views: name -> what the model makes of the target with one set of statistics.
        shift: its `severity`.
    """
    n, k = next(iter(views.values())).probabilities.shape
    chance = 1 / k
    found = {"log samples": math.log(n), "severity": math.log(shift + _LEAST)}
    for (one, view), (two, other) in itertools.combinations(views.items(), 2):
        found[f"{one} = {two}"] = (view.agreement(other) - chance) / (1 - chance)
    for name, view in views.items():
        p = view.probabilities
        entropy = -(p * np.log(p.clip(np.finfo(float).tiny))).sum(1).mean()
        found[f"{name} sure"] = (float(p.max(1).mean()) - chance) / (1 - chance)
        found[f"{name} unsure"] = float(entropy) / math.log(k)
        found[f"{name} classes"] = view.effective / min(k, n)
    return found


def calibrated_evidence(
    views: Mapping[str, View], shift: float, calibration: Calibration
) -> dict[str, float]:
    """Return the same, and what it is against the source's own figures.

    - "severity / typical", log(`shift` / typical + 0.03)
    - for every view "a sure / expected", the mean of the largest probability over that of the
      source's own images; and "a far", the logarithm of the features' mean squared Mahalanobis
      distance to the nearest class, over the number of features.

    Args:
        views: as for `evidence`.
        shift: as there.
        calibration: of the model, with features.
    """
    found = evidence(views, shift)
    found["severity / typical"] = math.log(shift / typical(calibration.typicality) + _LEAST)
    features = calibration.features
    width = features.means.shape[1] if features else 1
    for name, view in views.items():
        sure = float(view.probabilities.max(1).mean())
        found[f"{name} sure / expected"] = sure / calibration.confidence
        off = distance(features, view.seen.features) / width
        found[f"{name} far"] = math.log(max(off, _TINY))
    return found
