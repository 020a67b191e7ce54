"""The decision without a calibration, by what adapting changed in targets that look like it."""

from collections.abc import Mapping
from typing import NamedTuple

from adaptkit.estimation.trial import Trial
from adaptkit.guard.decision import Decision
from adaptkit.guard.evidence import evidence
from adaptkit.guard.forecast import Outlook, learned
from adaptkit.guard.typicality import severity
from adaptkit.guard.view import View
from adaptkit.guard.ways import EARLY, Balanced, Early, Full, Source, Way

TYPICAL = 0.2  # severity up to which the images are what the source saw, whatever their classes
FEWEST_IMAGES = 8  # of which fewer show nothing but themselves
FEWEST = 3  # images a class that it takes to let the classes count alike
FLOOR = 0.3  # of a class's part of an even target
ROUNDS = 3
CAUTION = 0.25  # spreads of a forecast that are taken off it
NEAR = 0.02  # of the best forecast, for all layers to be adapted, as AdaBN does
TEN = 10  # classes of a model: with fewer, more targets are harmed at the same limit


class Least(NamedTuple):
    """The least gain in accuracy to adapt for, of a point or more, by how many classes there are.

    Args:
        few: of fewer than ten classes.
        ten: of ten.
        more: of more.
    """

    few: float
    ten: float
    more: float

    def of(self, classes: int) -> float:
        """Return it for so many classes.

        >>> limit = Least(few=0.05, ten=0.02, more=0.01)
        >>> limit.of(2), limit.of(10), limit.of(1000)
        (0.05, 0.02, 0.01)
        """
        if classes == TEN:
            return self.ten
        return self.few if classes < TEN else self.more


# Such that at most 7% of targets lose a point, of classes of images that the forecast was not
# learned on (`benchmarks forecast`).
LEAST = Least(few=0.06, ten=0.01, more=0.01)


def decide_uncalibrated(trial: Trial, source: View) -> Decision:
    """Choose among the source's statistics and the target's, classes balanced, early or in all.

    Args:
        trial: of the model on the target.
        source: the model as it is, in that trial.
    """
    shift = severity(source.seen.plain, trial.stored)
    figures: dict[str, float | None] = {"severity": shift, "severity_typical": TYPICAL}

    def decided(way: Way, choice: str, *grounds: str) -> Decision:
        return Decision(way, choice, grounds, figures, None, False, len(trial))

    if len(trial) < FEWEST_IMAGES:
        return decided(Source(), "source", TOO_FEW)
    views = views_of(trial, source)
    outlook = learned(calibrated=False).outlook(evidence(views, shift))
    figures |= figures_of(views, outlook)
    moved = MOVED if shift > TYPICAL else TYPICAL_IMAGES
    best = best_of(outlook)
    if outlook[best].cautious(CAUTION) <= LEAST.of(source.probabilities.shape[1]):
        return decided(Source(), "source", moved, TOO_LITTLE)
    way, choice = ways(source)[best]
    return decided(way, choice, moved, gains(outlook[best]))


def views_of(trial: Trial, source: View) -> dict[str, View]:
    """Return the views that a forecast goes by."""
    return {"source": source, "full": Full().run(trial), "early": Early().run(trial)}


def ways(view: View) -> dict[str, tuple[Way, str]]:
    """Return the ways that a forecast tells of, and what a decision calls them."""
    n, k = view.probabilities.shape
    enough = n >= FEWEST * k  # images, to let the classes count alike
    return {
        "all": (Balanced(1.0, ROUNDS), "balanced") if enough else (Full(), "full"),
        "early": (Balanced(EARLY, ROUNDS + 1, FLOOR), "early"),
    }


def best_of(outlook: Mapping[str, Outlook]) -> str:
    """Return the way that is forecast to gain most, cautiously, or all layers if they are near."""
    return max(outlook, key=lambda way: outlook[way].cautious(CAUTION) + NEAR * (way == "all"))


def figures_of(views: Mapping[str, View], outlook: Mapping[str, Outlook]) -> dict[str, float]:
    """Return the figures that are told of what a forecast goes by, and of it."""
    full = views["full"]
    return {
        "source_agrees": views["source"].agreement(full),
        "full_agrees_with_early": full.agreement(views["early"]),
        "effective_classes_full": full.effective,
        **{f"forecast_{way}": expected.change for way, expected in outlook.items()},
        "forecast_spread": outlook[best_of(outlook)].spread,
    }


def gains(expected: Outlook) -> str:
    """Say what is forecast of the way that is taken."""
    return f"{ALIKE} {100 * expected.change:.0f} points of accuracy by this, on average."


MOVED = "no mix of the source's classes would move the images' statistics so far."
TOO_FEW = "these are too few images to tell a change of domain from chance."
TYPICAL_IMAGES = "the images' statistics lie about as near to the source's as its own would."
ALIKE = "models that took to labelled targets as this one does to these images gained"
TOO_LITTLE = f"{ALIKE} too little by adapting, or lost too often."
