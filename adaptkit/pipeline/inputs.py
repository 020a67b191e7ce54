"""The input fit within a run of the main job, and what it does by itself."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from adaptkit.data import ImageLoader
from adaptkit.distributed import alone, world
from adaptkit.input_fit import InputFit, fit_input
from adaptkit.pipeline.common import Progress
from adaptkit.pipeline.opening import Head
from adaptkit.pipeline.scoring import Scores, of_classes, score
from adaptkit.transform import Transform


@dataclass(frozen=True)
class Fitted:
    """An input fit, and images as it prepares them.

    Args:
        fit: the gain and the offset.
        transform: from an image to the model's input with them; None where nothing changed.
        to_adapt: the images to adapt to, so prepared.
        to_score: the images to score, so prepared.
        alone: of the source model on them.
    """

    fit: InputFit
    transform: Transform | None
    to_adapt: ImageLoader
    to_score: ImageLoader
    alone: Scores

    def as_fields(self) -> dict[str, Any]:
        """Return what a report says of it, apart from what the adapted statistics do."""
        scores = of_classes(self.alone)
        return {
            "gain": self.fit.gain.tolist(),
            "offset": self.fit.offset.tolist(),
            "misfit_before": self.fit.before,
            "misfit_after": self.fit.after,
            "changes": self.fit.changes,
            "accuracy_alone": scores and scores.accuracy,
        }


def fit(
    model: nn.Module,
    to_adapt: ImageLoader,
    to_score: ImageLoader,
    head: Head,
    progress: Progress | None,
) -> Fitted:
    """Fit a gain and an offset on the images to adapt to; score the source model with them.

    Raises:
        EstimationError: what comes before the first norm layer is not linear.
    """
    # Each process of a job by itself, on all images; the first one's counts.
    with world().united(), alone():
        found = fit_input(model, to_adapt, progress=progress)
    found = world().first(found)
    if not found.changes:
        return Fitted(found, None, to_adapt, to_score, None)
    assert to_adapt.transform is not None  # noqa: S101  they are images
    transform = to_adapt.transform.then(found.gain, found.offset)
    prepared = to_score.prepared_by(transform)
    by_itself = score(model, prepared, head)
    return Fitted(found, transform, to_adapt.prepared_by(transform), prepared, by_itself)
