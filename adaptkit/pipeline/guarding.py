"""The guard within a run of the main job: what it is given, and what a report says of it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader
from adaptkit.distributed import alone, world
from adaptkit.errors import CheckpointError, DataError, EstimationError
from adaptkit.guard import Calibration, Decision, calibrate
from adaptkit.pipeline.common import Progress
from adaptkit.pipeline.opening import Head

EACH = 100  # source images of a class that calibrate the guard, where no calibration is stored
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
) -> tuple[Calibration | None, str]:
    """Return what is known of a model's own domain: as stored, or as labelled source images show.

    And if there is none for want of what it takes, a note that says so; with `strict`, an error.

    Raises:
        CheckpointError: what the checkpoint stores is broken, or of a model of other classes.
        AdaptkitError: `strict` is set, and the source images will not do.
    """
    stored = checkpoint.calibration
    if stored is not None and stored.classes != head.size:
        raise CheckpointError(
            f"{checkpoint.path} has a calibration of {stored.classes} classes, and its model gives "
            f"{head.size or 'none'}: calibrate it anew"
        )
    if stored is not None or of_source is None or head.kind != "classes":
        return stored, ""
    labels = of_source.listing.labels
    if labels is None:
        return None, ""
    drawn = of_source.subset(some_of_each(labels, EACH, seed))
    count = len(drawn.dataset)  # type: ignore[arg-type]
    watch = progress and (lambda stage, n, _: progress(stage, n, count))
    together = world()
    found: tuple[Calibration | None, str] = None, ""
    with together.united():
        if together.rank == 0:  # for all
            try:
                with alone():
                    found = calibrate(model, drawn, seed=seed, progress=watch), ""
            except (DataError, EstimationError) as error:
                if strict:
                    raise
                found = None, f"the source images do not calibrate the guard: {error}."
    return together.first(found)


def some_of_each(labels: Sequence[int], each: int, seed: int) -> list[int]:
    """Return the positions of at most so many of each label, drawn at random, in order.

    >>> len(some_of_each([0, 0, 0, 1], 2, seed=0))
    3
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    counts: Counter[int] = Counter()
    chosen = []
    for position in order:
        counts[labels[position]] += 1
        if counts[labels[position]] <= each:
            chosen.append(position)
    return sorted(chosen)


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


def as_fields(
    decision: Decision, mode: str, classes: Sequence[str] | None, *, given: bool = False
) -> dict[str, Any]:
    """Return what a report says of a decision; `given` is whether the class shares were."""
    k = 0 if decision.shares is None else len(decision.shares)
    names = classes or [str(number) for number in range(k)]
    return {
        "mode": mode,
        "choice": decision.choice,
        "followed": mode == AUTO,
        "grounds": list(decision.grounds),
        "figures": dict(decision.figures),
        "calibrated": decision.calibrated,
        "samples": decision.samples,
        "shares_given": given,
        "class_shares": None
        if decision.shares is None
        else dict(zip(names, map(float, decision.shares), strict=True)),
    }
