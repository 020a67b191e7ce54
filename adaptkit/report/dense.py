"""Rows on segmentation: pixels right, and classes' intersections over unions."""

from collections.abc import Iterator, Sequence
from math import isfinite

import numpy as np

from adaptkit.dense import DenseEvaluation, dense_intervals
from adaptkit.errors import DataError
from adaptkit.report.samples import class_scope, mean_row
from adaptkit.report.table import Row


def dense_rows(
    before: DenseEvaluation, after: DenseEvaluation, classes: Sequence[str] | None, seed: int
) -> Iterator[Row]:
    """Yield the rows that `compare` has for segmentation.

    Raises:
        DataError: the evaluations are not of the same images.
    """
    if before.predicted.shape != after.predicted.shape or not _same_labels(before, after):
        raise DataError("Expected two evaluations of the same images in the same order")
    n = len(before)
    if before.confusion is not None and after.confusion is not None:
        first, second = before.figures(), after.figures()
        intervals = dense_intervals(before, after, seed=seed)
        for name, value in first.items():
            if isfinite(value) and isfinite(second[name]):
                low, high = intervals.get(name, (None, None))
                yield Row(name, "all", value, second[name], second[name] - value, low, high, n=n)
        assert before.iou is not None  # noqa: S101  it has labels, like the next
        assert after.iou is not None  # noqa: S101
        for k, (a, b) in enumerate(zip(before.iou, after.iou, strict=True)):
            if np.isfinite(a) and np.isfinite(b):
                yield Row("iou", class_scope(k, classes), float(a), float(b), float(b - a), n=n)
    yield mean_row("confidence_mean", before.confidence, after.confidence)
    yield mean_row("entropy_mean", before.entropy, after.entropy)
    shares = [e.predicted.sum(0) / max(e.predicted.sum(), 1) for e in (before, after)]
    for k, (a, b) in enumerate(zip(*shares, strict=True)):
        scope = class_scope(k, classes)
        yield Row("predicted_share", scope, float(a), float(b), float(b - a), n=n)


def _same_labels(before: DenseEvaluation, after: DenseEvaluation) -> bool:
    if before.confusion is None or after.confusion is None:
        return before.confusion is after.confusion
    return np.array_equal(before.confusion.sum(2), after.confusion.sum(2))
