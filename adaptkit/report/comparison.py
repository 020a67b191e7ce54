"""Two evaluations of the same samples, as one report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adaptkit.dense import DenseEvaluation
from adaptkit.errors import DataError
from adaptkit.estimation import Statistics
from adaptkit.evaluation import Evaluation
from adaptkit.paired import Change, proportion_change
from adaptkit.quality import quality, quality_intervals
from adaptkit.report.charts import (
    Chart,
    channel_chart,
    confidence_chart,
    confusion_chart,
    entropy_chart,
    layer_chart,
    precision_chart,
    recall_chart,
    reliability_chart,
    share_chart,
)
from adaptkit.report.dense import dense_rows
from adaptkit.report.layers import error_rows, layer_rows, target_of
from adaptkit.report.samples import class_scope, mean_row
from adaptkit.report.table import Report, Row


def compare(
    before: Evaluation | DenseEvaluation,
    after: Evaluation | DenseEvaluation,
    *,
    statistics: Statistics | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Report:
    """Compare two evaluations of the same samples in the same order.

    Rows with labels: accuracy, top5_accuracy (more than ten classes) and recall of each class
    (Newcombe's paired interval, McNemar's exact p-value); balanced_accuracy, macro_f1, nll, brier,
    ece and ece_equal_mass (see `adaptkit.quality.quality`; intervals from a paired bootstrap).
    Without: mean confidence and mean entropy in nats (paired t), the predicted share of each class,
    and agreement, the share of samples on which both models predict the same.
    For every norm layer, and as a mean over them: symmetric_kl in nats between what the model
    stores and the target's statistics, mean_shift, the root mean square over channels of
    (mean_target − mean) / σ_model, and log_var_shift, that of log(σ²_target / σ²_model).
    For segmentation (`evaluate_dense`): pixel_accuracy and mean_iou with bootstrap intervals over
    images, iou and predicted_share (of pixels) of each class, confidence, entropy and the layers.

    Args:
        before: of the source model.
        after: of the adapted model.
        classes: names of the classes, for the rows of each; by default their numbers.
        seed: of the bootstrap.
        statistics: the target's; by default those that `after` stores, which are the same thing
            after plain AdaBN. With them, their relative standard errors are reported as
            "statistic_se" (see `Statistics.errors`).
        details: kept as the report's own.

    Raises:
        DataError: the evaluations are not of the same samples, or there are fewer names than
            classes.

    >>> import torch, adaptkit
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    >>> data = [(torch.tensor([[1.0, 9.0], [3.0, 8.0]]), torch.tensor([0, 1]))]
    >>> before = adaptkit.evaluate(net, data)
    >>> after = adaptkit.evaluate(adaptkit.adapt(net, data), data)
    >>> frame = compare(before, after).to_frame()
    >>> frame[["metric", "before", "after"]].head(1).values.tolist()
    [['accuracy', 0.5, 0.0]]
    """
    if classes and len(classes) < (most := max(before.classes or 0, after.classes or 0)):
        raise DataError(f"Expected the names of {most} classes, got {len(classes)}")
    if isinstance(before, DenseEvaluation) and isinstance(after, DenseEvaluation):
        first = [*dense_rows(before, after, classes, seed)]
    elif isinstance(before, Evaluation) and isinstance(after, Evaluation):
        first = _rows(before, after, classes, seed)
    else:
        raise DataError("Expected two evaluations of the same kind, of classes or of pixels")
    target = target_of(after.layers, statistics)
    rows = [*first, *layer_rows(before.layers, after.layers, target), *error_rows(statistics)]
    charts = [
        recall_chart(rows),
        *_charts(before, after, classes),
        share_chart(rows),
        layer_chart(rows),
        channel_chart(before.layers, target),
        precision_chart(statistics),
    ]
    found = tuple(chart for chart in charts if chart is not None)
    return Report(tuple(rows), dict(details or {}), found)


def _charts(
    before: Evaluation | DenseEvaluation,
    after: Evaluation | DenseEvaluation,
    classes: Sequence[str] | None,
) -> Iterator[Chart | None]:
    """Yield those that are drawn from the evaluations and not from rows."""
    if isinstance(before, Evaluation) and isinstance(after, Evaluation):
        yield confusion_chart(before, after, classes)
        yield reliability_chart(before, after)
    yield confidence_chart(before, after)
    yield entropy_chart(before, after)


def _rows(
    before: Evaluation, after: Evaluation, classes: Sequence[str] | None, seed: int
) -> list[Row]:
    _check_same_samples(before, after)
    return [
        *_accuracy(before, after),
        *_quality(before, after, seed),
        *_recalls(before, after, classes),
        mean_row("confidence_mean", before.confidence, after.confidence),
        mean_row("entropy_mean", before.entropy, after.entropy),
        _agreement(before, after),
        *_predicted_shares(before, after, classes),
    ]


def _check_same_samples(before: Evaluation, after: Evaluation) -> None:
    if len(before) != len(after):
        raise DataError(
            f"Expected two evaluations of the same samples, got {len(before)} and {len(after)}"
        )
    same = (
        before.labels is after.labels
        if before.labels is None or after.labels is None
        else np.array_equal(before.labels, after.labels)
    )
    if not same:
        raise DataError(
            "Expected two evaluations of the same samples in the same order, got different labels: "
            "does the loader shuffle?"
        )


def _accuracy(before: Evaluation, after: Evaluation) -> Iterator[Row]:
    if before.correct is None or after.correct is None:
        return
    change = proportion_change(before.correct, after.correct)
    yield Row("accuracy", "all", before.accuracy, after.accuracy, *change, n=len(before))


def _quality(before: Evaluation, after: Evaluation, seed: int) -> Iterator[Row]:
    if before.labels is None or after.labels is None:
        return
    if before.top5 is not None and after.top5 is not None and (before.classes or 0) > 10:
        change = proportion_change(before.top5, after.top5)
        shares = float(before.top5.mean()), float(after.top5.mean())
        yield Row("top5_accuracy", "all", *shares, *change, n=len(before))
    first, second = quality(before), quality(after)
    intervals = quality_intervals(before, after, seed=seed)
    for name in first:
        if name in second:
            low, high = intervals.get(name, (None, None))
            change = Change(second[name] - first[name], low, high, None)
            yield Row(name, "all", first[name], second[name], *change, n=len(before))


def _recalls(before: Evaluation, after: Evaluation, classes: Sequence[str] | None) -> Iterator[Row]:
    if before.labels is None or before.correct is None or after.correct is None:
        return
    for k in np.unique(before.labels):
        here = before.labels == k
        a, b = before.correct[here], after.correct[here]
        change = proportion_change(a, b)
        yield Row(
            "recall", class_scope(k, classes), float(a.mean()), float(b.mean()), *change, n=len(a)
        )


def _agreement(before: Evaluation, after: Evaluation) -> Row:
    same = float((before.predictions == after.predictions).mean())
    return Row("agreement", "all", None, same, None, n=len(before))


def _predicted_shares(
    before: Evaluation, after: Evaluation, classes: Sequence[str] | None
) -> Iterator[Row]:
    ever = np.unique(np.concatenate([before.predictions, after.predictions]))
    for k in range(before.classes or int(ever.max(initial=-1)) + 1):
        a, b = before.predictions == k, after.predictions == k
        change = proportion_change(a, b)
        scope = class_scope(k, classes)
        yield Row("predicted_share", scope, float(a.mean()), float(b.mean()), *change, n=len(a))
