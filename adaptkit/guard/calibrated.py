"""The decision with a calibration: correct the statistics for the target's mix of classes, or not.

The mix is not known. It is sought as a fixed point, shares that the model predicts behind
statistics corrected for those same shares; from three sides, as there can be several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptkit.estimation.trial import Trial
from adaptkit.guard.calibration import Calibration
from adaptkit.guard.decision import Decision
from adaptkit.guard.typicality import severity
from adaptkit.guard.view import Floats, View
from adaptkit.guard.ways import Corrected, Early, Full, Source

ROUNDS = 8  # of a fixed point
STEP = 0.7  # of the way to what is predicted, in a round
STILL = 0.005  # change of the shares, summed, below which the rounds end
SOFT = 4  # rounds that follow mean probabilities where the start is unsure; then counts
SAME = 0.9  # of the predictions alike: two starts have come to the same
TRUST = 0.3  # predictions alike with plain AdaBN's, below which nothing is believed
BASE, SLOPE = 1.1, 0.5  # distance allowed against plain AdaBN's, the less the more they differ
BETTER = 0.95  # of the source's distance
FAR = 2.0  # times plain AdaBN's distance: the source does not fit at all
EVEN = 0.5  # of all classes that plain AdaBN's predictions are spread over


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    way: Corrected
    view: View
    distance: float


def decide_calibrated(trial: Trial, calibration: Calibration) -> Decision:
    """Choose among the source's statistics, plain AdaBN and corrected ones."""
    source, full = Source().run(trial), Full().run(trial)
    early = Early().run(trial)
    starts = {
        "the source's own mix": (calibration.moments.shares.numpy(), 0),
        "what adapted early layers predict": (early.probabilities.mean(0), SOFT),
        "what the source model predicts": (source.shares, 0),
    }
    found = [
        _fixed_point(trial, calibration, name, shares, soft)
        for name, (shares, soft) in starts.items()
    ]
    d_source, d_full = distance(calibration, source), distance(calibration, full)
    shift = severity(source.seen.plain, trial.stored)
    figures: dict[str, float | None] = {
        "severity": shift,
        "severity_typical": calibration.typicality[-1],
        "distance_source": d_source,
        "distance_full": d_full,
        "effective_classes_full": full.effective,
    }
    best: tuple[int, float, _Candidate] | None = None
    for candidate in found:
        support = sum(candidate.view.agreement(other.view) >= SAME for other in found)
        alike = full.agreement(candidate.view)
        limit = d_full * (BASE - SLOPE * (1 - alike))
        if support >= 2 and alike >= TRUST and candidate.distance <= limit:
            rank = (support, -candidate.distance)
            if best is None or rank > best[:2]:
                best = (*rank, candidate)
    if best:
        chosen = best[2]
        figures |= {"distance_corrected": chosen.distance, "starts_that_agree": best[0]}
        if chosen.distance < BETTER * d_source:
            return Decision(
                chosen.way,
                "corrected",
                (
                    f"{best[0]} of 3 starts come to the same mix of classes.",
                    "with statistics corrected for it, the features lie nearer to the source's "
                    "classes than with the source's own.",
                ),
                figures,
                chosen.way.shares,
                True,
                len(trial),
            )
        return Decision(
            Source(),
            "source",
            ("corrected statistics bring the features no nearer to the source's classes.",),
            figures,
            chosen.way.shares,
            True,
            len(trial),
        )
    even = full.effective > EVEN * calibration.classes
    if shift > calibration.typicality[-1] and d_source > FAR * d_full and even:
        return Decision(
            Full(),
            "full",
            (
                "the images are not what the source saw, whatever their classes, and its features "
                "lie far from all of its classes.",
                "plain AdaBN predicts an even mix, so there is none to correct for.",
            ),
            figures,
            None,
            True,
            len(trial),
        )
    return Decision(
        Source(),
        "source",
        ("different starts come to different mixes of classes, or to none that fits.",),
        figures,
        None,
        True,
        len(trial),
    )


def decide_shares(
    trial: Trial, calibration: Calibration, shares: Tensor | Sequence[float]
) -> Decision:
    """Choose between the source's statistics and ones corrected for a mix that is known."""
    given = torch.as_tensor(shares, dtype=torch.float64).numpy()
    way = Corrected(calibration.moments, given)
    source, corrected = Source().run(trial), way.run(trial)
    d_source, d_corrected = distance(calibration, source), distance(calibration, corrected)
    shift = severity(source.seen.plain, trial.stored)
    figures: dict[str, float | None] = {
        "severity": shift,
        "severity_typical": calibration.typicality[-1],
        "distance_source": d_source,
        "distance_corrected": d_corrected,
    }
    known = calibration.features is not None
    better = d_corrected < BETTER * d_source if known else shift > calibration.typicality[-1]
    if better:
        grounds = (
            "the target's mix of classes was given.",
            "with statistics corrected for it, the features lie nearer to the source's classes "
            "than with the source's own.",
        )
        return Decision(way, "corrected", grounds, figures, given, True, len(trial))
    why = "corrected statistics bring the features no nearer to the source's classes."
    return Decision(Source(), "source", (why,), figures, given, True, len(trial))


def distance(calibration: Calibration, view: View) -> float:
    """Mean squared Mahalanobis distance of the features to the nearest source class."""
    if calibration.features is None or view.seen.features is None:
        return float("nan")
    return float(calibration.features.distances(view.seen.features).min(1).mean())


def _fixed_point(
    trial: Trial, calibration: Calibration, name: str, shares: Floats, soft: int
) -> _Candidate:
    """Follow q ← q + 0.7·(shares predicted behind statistics corrected for q − q)."""
    for number in range(ROUNDS + 1):
        way = Corrected(calibration.moments, shares)
        view = way.run(trial)
        predicted = view.probabilities.mean(0) if number < soft else view.shares
        if number == ROUNDS or np.abs(predicted - shares).sum() < STILL:
            break
        shares = shares + STEP * (predicted - shares)
    return _Candidate(name, way, view, distance(calibration, view))
