"""Images whose prediction changed, the best and the worst of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptkit.evaluation import Evaluation


@dataclass(frozen=True)
class Picture:
    """A small image and what the two models take it for.

    Args:
        kind: which of `changed`'s two lists it is of, "best" or "worst".
        name: of the file.
        data: of the small image.
        media: its type, such as "image/png".
        label: the true class; None without labels.
        before: the prediction, with its confidence.
        after: the same after adapting.
    """

    kind: str
    name: str
    data: bytes
    media: str
    label: str | None
    before: tuple[str, float]
    after: tuple[str, float]


def changed(before: Evaluation, after: Evaluation, most: int) -> tuple[list[int], list[int]]:
    """Return samples whose prediction changed: the best and the worst, `most` of each at most.

    With labels the best were wrong and are right, and the worst were right and are wrong, those of
    the surest last prediction first. Without, the best are those of which the model became surer,
    the worst those of which it became less sure, those of the largest change of confidence first.
    """
    known = (before.predictions >= 0) & (after.predictions >= 0)
    moved = known & (before.predictions != after.predictions)
    if before.correct is not None and after.correct is not None:
        better, worse = ~before.correct & after.correct, before.correct & ~after.correct
        weight = after.confidence
    else:
        weight = np.abs(after.confidence - before.confidence)
        better = after.confidence > before.confidence
        worse = ~better
    best, worst = (_first(moved & which, weight, most) for which in (better, worse))
    return best, worst


def _first(which: Sequence[bool] | np.ndarray, weight: np.ndarray, most: int) -> list[int]:
    places = np.flatnonzero(which)
    order = np.argsort(-weight[places], kind="stable")[:most]
    return [int(i) for i in places[order]]
