"""The decision with a calibration: correct the statistics for the target's mix of classes, or not.

The mix is read off the mean of the inputs where the source's classes differ in that. Else it is
sought in the model's own predictions, and a forecast tells what to make of it.
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
from adaptkit.guard.evidence import calibrated_evidence
from adaptkit.guard.fixed_point import fixed_point
from adaptkit.guard.forecast import learned
from adaptkit.guard.typicality import severity, typical
from adaptkit.guard.uncalibrated import (
    CAUTION,
    FEWEST_IMAGES,
    MOVED,
    TOO_FEW,
    TOO_LITTLE,
    TYPICAL_IMAGES,
    Least,
    best_of,
    figures_of,
    gains,
    views_of,
    ways,
)
from adaptkit.guard.view import Floats, View, effective
from adaptkit.guard.ways import Corrected, Full, Source, Way

EXPLAINED = 0.7  # of the target's mean map, by the classes' maps
FEW = 3.0  # classes, effectively, up to which the source may be right in predicting few
MOST = 0.9  # of the classes, effectively, above which a target is not of few
CLOSE = 0.5  # of shares to each other, summed: the source predicts what the maps show
NEAR = 1.0  # of shares to the source's own, summed: maps that err may show such, so AdaBN may do
CLEARLY = 0.8  # of the corrected statistics' distance, for plain AdaBN to be taken in their place
# Such that at most 3% of targets lose a point, of classes of images that the forecast was not
# learned on (`benchmarks forecast`).
LEAST = Least(few=0.13, ten=0.06, more=0.03)


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


class _Ground:
    """What a decision stands on: the source's view, and the figures as they are measured."""

    def __init__(self, trial: Trial, calibration: Calibration, source: View) -> None:
        self.trial, self.calibration, self.source = trial, calibration, source
        self.shift = severity(source.seen.plain, trial.stored)
        self.typical = typical(calibration.typicality)
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
    if maps is None or len(known) < len(places) or not maps.tell:
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
    classes, few = effective(shares), min(FEW, MOST * calibration.classes)
    ground.figures |= {
        "map_explained": shown.explained,
        "map_gain": shown.gain,
        "effective_classes": classes,
    }
    if shown.gain <= 0 and classes > few:
        inverted = "light and dark have changed places, which statistics cannot set right."
        return ground.decided(Source(), "source", inverted, shares=shares)
    if classes <= few and np.abs(source.shares - shares).sum() <= CLOSE:
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
    trial, calibration, source = ground.trial, ground.calibration, ground.source
    if len(trial) < FEWEST_IMAGES:
        return ground.decided(Source(), "source", TOO_FEW)
    point = fixed_point(trial, calibration.moments)
    views = calibrated_views(trial, source, point)
    outlook = learned(calibrated=True).outlook(
        calibrated_evidence(views, ground.shift, calibration)
    )
    for name in ("full", "corrected"):
        ground.measured(f"distance_{name}", views[name])
    ground.figures |= figures_of(views, outlook)
    best = best_of(outlook)
    moved = MOVED if ground.shift > ground.typical else TYPICAL_IMAGES
    if outlook[best].cautious(CAUTION) <= LEAST.of(calibration.classes):
        return ground.decided(Source(), "source", moved, TOO_LITTLE, shares=point.shares)
    way, choice = calibrated_ways(source, point)[best]
    return ground.decided(way, choice, moved, gains(outlook[best]), shares=point.shares)


def calibrated_views(trial: Trial, source: View, point: Corrected) -> dict[str, View]:
    """Return the views that a forecast with a calibration goes by."""
    return {**views_of(trial, source), "corrected": point.run(trial)}


def calibrated_ways(source: View, point: Corrected) -> dict[str, tuple[Way, str]]:
    """Return the ways that it tells of, and what a decision calls them."""
    return {**ways(source), "corrected": (point, "corrected")}
