"""Running a model over images and saying how good it is, for each kind of output."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from adaptkit.data import ImageLoader
from adaptkit.dense import DenseEvaluation, evaluate_dense
from adaptkit.estimation import Statistics
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.norms import norm_layers, read
from adaptkit.pipeline.opening import Head
from adaptkit.report import Report, compare
from adaptkit.report.layers import error_rows, layer_rows, target_of

Scores = Evaluation | DenseEvaluation | None  # None of a model whose output nothing can score


def score(
    model: nn.Module,
    images: ImageLoader,
    head: Head,
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Scores:
    """Evaluate a model on images as its kind of output wants it."""
    if head.kind == "classes":
        return evaluate(model, images, progress=progress)
    if head.kind == "pixels":
        return evaluate_dense(model, images, progress=progress)
    return None


def reported(
    before: Scores,
    after: Scores,
    models: tuple[nn.Module, nn.Module],
    *,
    statistics: Statistics | None,
    classes: Sequence[str] | None,
    seed: int,
    details: Mapping[str, Any],
) -> Report:
    """Compare the scores of two models, or if there are none, what their norm layers store.

    `statistics` are the target's, None where adapting leaves the layers as they are.
    """
    if before is not None and after is not None:
        return compare(
            before, after, statistics=statistics, classes=classes, seed=seed, details=details
        )
    if statistics is None:
        return Report((), dict(details))
    own, new = ({n: read(m) for n, m in norm_layers(x).items()} for x in models)
    rows = [*layer_rows(own, new, target_of(new, statistics)), *error_rows(statistics)]
    return Report(tuple(rows), dict(details))


def of_classes(scores: Scores) -> Evaluation | None:
    """Return the evaluation of a classifier; None of anything else."""
    return scores if isinstance(scores, Evaluation) else None
