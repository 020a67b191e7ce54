"""The decision without a calibration, by whether another mix of classes could cause the shift."""

from adaptkit.estimation.trial import Trial
from adaptkit.guard.decision import Decision
from adaptkit.guard.typicality import severity
from adaptkit.guard.view import View
from adaptkit.guard.ways import EARLY, Balanced, Early, Full, Source, Way

TYPICAL = 0.2  # severity up to which the images are what the source saw, whatever their classes
EVEN = 0.8  # predictions alike with the early layers adapted and with all: the mix seems even
SAME = 0.5  # predictions alike with the source: it still holds
SOME = 0.35  # the same, enough to leave the late layers alone
ROUNDS = 3
FEWEST_IMAGES = 8  # of which fewer show nothing but themselves
FEWEST = 3  # images a class that it takes to let the classes count alike
FLOOR = 0.3  # of a class's part of an even target


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
    full, early = Full().run(trial), Early().run(trial)
    alike, stays = full.agreement(early), full.agreement(source)
    figures |= {"full_agrees_with_early": alike, "effective_classes_full": full.effective}
    if shift <= TYPICAL and (alike < EVEN or stays > SAME):
        return decided(Source(), "source", TYPICAL_IMAGES)
    moved = MOVED if shift > TYPICAL else UNLIKE
    way, choice = whole(source)
    if alike >= EVEN:
        return decided(way, choice, moved, EVEN_LAYERS)
    one_round = Balanced(1.0, 1).run(trial) if choice == "balanced" else full
    stays = source.agreement(one_round)
    figures["source_agrees"] = stays
    skewed = "the classes seem to be mixed otherwise than in the source"
    if stays > SAME:
        as_before = f"{skewed}, and the source model still predicts much as an adapted one."
        return decided(Source(), "source", moved, as_before)
    if stays > SOME:
        late = f"{skewed}, which late layers would take for the domain."
        return decided(Balanced(EARLY, ROUNDS + 1, FLOOR), "early", moved, late)
    other = (
        "the source model predicts something else than any adapted one, so there is little to lose."
    )
    return decided(way, choice, moved, other)


def whole(view: View) -> tuple[Way, str]:
    """Return the way to adapt all layers: classes counting alike, if there are images enough."""
    n, k = view.probabilities.shape
    return (Balanced(1.0, ROUNDS), "balanced") if n >= FEWEST * k else (Full(), "full")


EVEN_LAYERS = (
    "adapting the late layers too hardly changes the predictions, so the classes seem to be mixed "
    "as in the source."
)
MOVED = "no mix of the source's classes would move the images' statistics so far."
UNLIKE = "the images' statistics are typical of the source, but its predictions are not AdaBN's."
TOO_FEW = "these are too few images to tell a change of domain from chance."
TYPICAL_IMAGES = (
    "the images are as typical of the source as its own, so there is nothing to adapt to; a "
    "change of the statistics would come from the mix of classes."
)
