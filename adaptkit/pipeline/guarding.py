"""The guard within a run of the main job: what it is given, and what a report says of it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader
from adaptkit.errors import DataError, EstimationError
from adaptkit.guard import Calibration, Decision, calibrate
from adaptkit.pipeline.common import Progress
from adaptkit.pipeline.opening import Head

OFF, AUTO, REPORT = MODES = ("off", "auto", "report")


def check_mode(mode: str) -> None:
    """Raise EstimationError unless this is one of the guard's modes."""
    if mode not in MODES:
        raise EstimationError(f"Expected guard to be one of {', '.join(MODES)}, got {mode!r}")


def known_calibration(
    checkpoint: Checkpoint,
    model: nn.Module,
    of_source: ImageLoader | None,
    head: Head,
    *,
    strict: bool,
    seed: int,
    progress: Progress | None,
) -> Calibration | None:
    """Return what is known of a model's own domain: as stored, or as labelled source images show.

    None where neither is there, or images of a class are missing and `strict` is not set.

    Raises:
        CheckpointError: what the checkpoint stores is broken.
        DataError: a class has fewer than two source images, and `strict` is set.
    """
    stored = checkpoint.calibration
    if stored is not None or of_source is None or head.kind != "classes":
        return stored
    labels = of_source.listing.labels
    if labels is None or (not strict and len(repeated(labels)) < (head.size or 0)):
        return None
    count = len(of_source.dataset)  # type: ignore[arg-type]
    watch = progress and (lambda stage, n, _: progress(stage, n, count))
    return calibrate(model, of_source, seed=seed, progress=watch)


def repeated(labels: Sequence[int]) -> set[int]:
    """Return the labels that come twice or more."""
    return {label for label, count in Counter(labels).items() if count > 1}


def needed(calibration: Calibration | None, head: Head) -> Calibration:
    """Return the calibration that known class shares need.

    Raises:
        EstimationError: the model gives no classes.
        DataError: there is none.
    """
    if head.kind != "classes":
        raise EstimationError("class shares are for models that give classes: leave them out")
    if calibration is None:
        raise DataError(
            "class shares need labelled source images to know the classes by: give --source-data a "
            "folder with a sub-folder for each class, or calibrate the model"
        )
    return calibration


def as_fields(decision: Decision, mode: str, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return what a report says of a decision."""
    names = classes or [str(k) for k in range(len(decision.shares or ()))]
    return {
        "mode": mode,
        "choice": decision.choice,
        "followed": mode == AUTO,
        "grounds": list(decision.grounds),
        "figures": dict(decision.figures),
        "calibrated": decision.calibrated,
        "samples": decision.samples,
        "class_shares": None
        if decision.shares is None
        else dict(zip(names, map(float, decision.shares), strict=True)),
    }
