"""What is taken for what, and how adapting changed that."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from adaptkit.evaluation import Evaluation
from adaptkit.report.cells import short
from adaptkit.report.charts.chart import Chart, Floats, Grid

Counts = NDArray[np.int64]

SHOWN = 30  # classes; of more, those that changed most


def confusion_chart(
    before: Evaluation, after: Evaluation, classes: Sequence[str] | None = None
) -> Chart | None:
    """Return the change of the confusion matrix; without labels, where predictions moved.

    With labels, row i and column j have the change of the share of class i that is predicted as j,
    in points. Without, the share of what was predicted as i that is now predicted as j. None where
    no sample has two known predictions.
    """
    known = (before.predictions >= 0) & (after.predictions >= 0)
    if not known.any():
        return None
    k = before.classes or 1 + int(max(before.predictions.max(), after.predictions.max()))
    names = list(classes) if classes else [str(i) for i in range(k)]
    first, second = before.predictions[known], after.predictions[known]
    every = np.arange(k)
    if before.labels is not None:
        labels = before.labels[known]
        values = _shares(confusion_matrix(labels, second, labels=every))
        values -= _shares(confusion_matrix(labels, first, labels=every))
        chosen = _chosen(np.bincount(labels, minlength=k)[:, None] * np.abs(values))
        texts = _LABELLED
    else:
        counts = confusion_matrix(first, second, labels=every)
        values = _shares(counts)
        np.fill_diagonal(counts, 0)
        chosen = _chosen(counts)
        texts = _UNLABELLED
    part = [names[i] for i in chosen]
    pairs = _pairs(values, names, off_diagonal=before.labels is None)
    left_out = f" The {SHOWN} of {k:,} classes that changed most." if k > SHOWN else ""
    return Chart(
        name="confusion",
        title=texts["title"],
        x=texts["columns"],
        caption=texts["caption"] + left_out,
        grid=Grid(
            100 * values[np.ix_(chosen, chosen)],
            part,
            part,
            texts["unit"],
            texts["rows"],
        ),
        table=pairs.rename(columns={"from": texts["rows"], "to": texts["columns"]}),
        finding=_finding(pairs, texts["unit"]),
    )


_LABELLED = {
    "title": "How the confusions changed",
    "rows": "class",
    "columns": "predicted as",
    "unit": "points",
    "caption": (
        "The change of the share of each class (row) that is predicted as another (column). "
        "A rise on the diagonal and falls beside it are what is wanted."
    ),
}
_UNLABELLED = {
    "title": "Where predictions moved",
    "rows": "predicted before",
    "columns": "predicted after",
    "unit": "%",
    "caption": (
        "Of what the source model predicted as one class (row), the share that the adapted model "
        "predicts as each (column). Which of the two is right, nobody can say without labels."
    ),
}
_PAIRS = 100  # in the table


def _shares(counts: Counts) -> Floats:
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), dtype=np.float64)


def _chosen(weights: Counts | Floats) -> Counts:
    """Return the classes whose rows and columns weigh most, in their own order."""
    total = weights.sum(0) + weights.sum(1)
    return np.sort(np.argsort(-total, kind="stable")[:SHOWN])


def _pairs(values: Floats, names: Sequence[str], *, off_diagonal: bool) -> pd.DataFrame:
    size = np.abs(values)
    if off_diagonal:
        np.fill_diagonal(size, 0)
    order = np.argsort(-size, axis=None, kind="stable")[:_PAIRS]
    rows = [divmod(int(flat), values.shape[1]) for flat in order if size.flat[flat] > 0]
    return pd.DataFrame(
        [(names[i], names[j], float(100 * values[i, j])) for i, j in rows],
        columns=["from", "to", "value"],
    )


def _finding(pairs: pd.DataFrame, unit: str) -> str:
    if pairs.empty:
        return "No prediction changed."
    first = pairs.iloc[0]
    sign = "+" if unit == "points" else ""
    names = (short(first[end], 60) for end in ("from", "to"))
    return f"The largest: {' as '.join(names)}, {first['value']:{sign}.1f} {unit}."
