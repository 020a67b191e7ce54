"""The decision with a calibration: correct the statistics for the target's mix of classes, or not.

The mix is read off the mean of the inputs where the source's classes differ in that, and else off
the model's own predictions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adaptkit.estimation.trial import Trial
from adaptkit.guard.calibration import Calibration, places_of
from adaptkit.guard.class_features import distance
from adaptkit.guard.class_maps import MapShares, mean_map
from adaptkit.guard.decision import Decision
from adaptkit.guard.fixed_points import agreed, fixed_points
from adaptkit.guard.typicality import AT, severity
from adaptkit.guard.uncalibrated import MOVED
from adaptkit.guard.view import Floats, View, effective
from adaptkit.guard.ways import Corrected, Full, Source, Way

CERTAIN = 0.6  # largest error of shares that maps gave of the source itself, for them to be used
EXPLAINED = 0.7  # of the target's mean map, by the classes' maps
FEW = 3.0  # classes, effectively, up to which the source may be right in predicting few
CLOSE = 0.5  # of shares to each other, summed: the source predicts what the maps show
NEAR = 1.0  # of shares to the source's own, summed: maps that err may show such, so AdaBN may do
CLEARLY = 0.8  # of the corrected statistics' distance, for plain AdaBN to be taken in their place
BETTER = 0.95  # of the source's distance, for what the predictions alone say
TYPICAL_AT = 0.95  # of the source's own draws; higher quantiles differ by chance from net to net
TWICE = 2.0  # AdaBN's distance, or the typical severity: the source is lost
SPREAD = 0.8  # of all classes, effectively, that are predicted of an even target, or more


def decide_calibrated(trial: Trial, calibration: Calibration, source: View) -> Decision:
    """Choose among the source's statistics, corrected ones, and plain AdaBN."""
    ground = _Ground(trial, calibration, source)
    shown = _of_maps(trial, calibration)
    if shown is None:
        return _by_predictions(ground)
    return _by_maps(ground, shown)


def decide_shares(
    trial: Trial, calibration: Calibration, source: View, shares: Tensor | Sequence[float]
) -> Decision:
    """Choose between the source's statistics and ones corrected for a mix that is known."""
    given = torch.as_tensor(shares, dtype=torch.float64).numpy()
    ground = _Ground(trial, calibration, source)
    way = Corrected(calibration.moments, given)
    off = ground.measured("distance_corrected", way.run(trial))
    fits = off < ground.off if calibration.features else ground.shift > ground.typical
    if fits:
        return ground.decided(way, "corrected", GIVEN, NEARER, shares=given)
    return ground.decided(Source(), "source", GIVEN, NO_NEARER, shares=given)


GIVEN = "the target's mix of classes was given."
SHOWN = "the mean of the images shows the target's mix of classes."
NEARER = (
    "with statistics corrected for it, the features lie nearer to the source's classes than with "
    "the source's statistics."
)
EVEN = "the target's mix of classes is near the source's."
FITS = "with the target's statistics, the features lie nearer to the source's classes."
NO_NEARER = (
    "statistics corrected for it bring the features no nearer to the source's classes than the "
    "source's statistics do."
)
APART = "the model's predictions lead to different mixes of classes, or to none that fits."
LOST = "the images are too far from the source's for its statistics to be of use."
SPREAD_OUT = "no class seems to be missing."


class _Ground:
    """What a decision stands on: the source's view, and the figures as they are measured."""

    def __init__(self, trial: Trial, calibration: Calibration, source: View) -> None:
        self.trial, self.calibration, self.source = trial, calibration, source
        self.shift = severity(source.seen.plain, trial.stored)
        self.typical = calibration.typicality[AT.index(TYPICAL_AT)]
        self.figures: dict[str, float | None] = {
            "severity": self.shift,
            "severity_typical": self.typical,
        }
        self.off = self.measured("distance_source", source)

    def measured(self, name: str, view: View) -> float:
        """Return, and note under a name, how far a view's features lie from the classes."""
        off = distance(self.calibration.features, view.seen.features)
        self.figures[name] = off if np.isfinite(off) else None
        return off

    def decided(
        self, way: Way, choice: str, *grounds: str, shares: Floats | None = None
    ) -> Decision:
        return Decision(way, choice, grounds, self.figures, shares, True, len(self.trial))


def _of_maps(trial: Trial, calibration: Calibration) -> MapShares | None:
    """Return what the mean of the inputs shows, None where it tells nothing of classes."""
    maps = calibration.maps
    places = [places_of(batch) for batch in trial.batches]
    known = [part for part in places if part is not None and maps is not None]
    if maps is None or len(known) < len(places) or maps.error > CERTAIN:
        return None
    if any(part.shape[1:] != maps.maps.shape[1:] for part in known):
        return None
    found = maps.shares(mean_map(np.concatenate(known)))
    return found if found.explained >= EXPLAINED else None


def _by_maps(ground: _Ground, shown: MapShares) -> Decision:
    trial, calibration, source, shares = (
        ground.trial,
        ground.calibration,
        ground.source,
        shown.shares,
    )
    classes = effective(shares)
    ground.figures |= {
        "map_explained": shown.explained,
        "map_gain": shown.gain,
        "effective_classes": classes,
    }
    if shown.gain <= 0 and classes > FEW:
        inverted = "light and dark have changed places, which statistics cannot set right."
        return ground.decided(Source(), "source", inverted, shares=shares)
    if classes <= FEW and np.abs(source.shares - shares).sum() <= CLOSE:
        right = "there are few classes in the target, and the source model predicts just those."
        return ground.decided(Source(), "source", SHOWN, right, shares=shares)
    way, whole = Corrected(calibration.moments, shares), Full()
    off = ground.measured("distance_corrected", way.run(trial))
    near = np.abs(shares - calibration.moments.shares.numpy()).sum() <= NEAR
    plain = ground.measured("distance_full", whole.run(trial)) if near else np.inf
    if off < ground.off and not plain < CLEARLY * off:
        return ground.decided(way, "corrected", SHOWN, NEARER, shares=shares)
    if plain < ground.off:
        return ground.decided(whole, "full", EVEN, FITS, shares=shares)
    # Images that were moved or scaled can fit the maps and show another mix than they are of.
    return _by_predictions(ground)


def _by_predictions(ground: _Ground) -> Decision:
    full = Full().run(ground.trial)
    plain = ground.measured("distance_full", full)
    ground.figures["effective_classes_full"] = full.effective
    points = fixed_points(ground.trial, ground.calibration, ground.source)
    found = agreed(points, full, plain)
    why: tuple[str, ...] = (APART,)
    shares = None
    if found is not None:
        way, shares = found.point.way, found.point.way.shares
        ground.measured("distance_corrected", found.point.view)
        ground.figures["starts_that_agree"] = float(found.support)
        alike = f"{found.support} of 3 ways to the target's mix of classes come to the same."
        if found.point.distance < BETTER * ground.off:
            return ground.decided(way, "corrected", alike, NEARER, shares=shares)
        if found.support == len(points) and ground.shift > ground.typical:
            return ground.decided(way, "corrected", alike, MOVED, shares=shares)
        why = alike, NO_NEARER
    # A lost source model that is right is so by luck, by predicting the few classes that there are.
    # Of these alone, AdaBN or the mix that its predictions lead to would show fewer than all.
    lost = ground.off > TWICE * plain or ground.shift > TWICE * ground.typical
    classes = min(full.effective, points[0].view.effective)
    if lost and classes >= SPREAD * ground.calibration.classes:
        return ground.decided(Full(), "full", LOST, SPREAD_OUT)
    return ground.decided(Source(), "source", *why, shares=shares)
