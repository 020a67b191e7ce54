"""What is taken for what, and how adapting changed that."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptkit.evaluation import Evaluation
from adaptkit.report.cells import short
from adaptkit.report.charts.chart import Chart, Grid

Counts = NDArray[np.int64]

SHOWN = 30  # classes in the grid; of more, those with the most that changed
_PAIRS = 100  # in the table
_NONE = "none"  # the prediction of a sample whose logits are NaN


def confusion_chart(
    before: Evaluation, after: Evaluation, classes: Sequence[str] | None = None
) -> Chart:
    """Return the change of the confusion matrix; without labels, where predictions moved.

    With labels, row i and column j have the change of the share of class i that is predicted as j,
    in points. Without, the share of what was predicted as i that is now predicted as j ≠ i.
    O(n) memory, whatever the number of classes.
    """
    names = _names(before, after, classes)
    if before.labels is not None:
        return _labelled(before.labels, before.predictions, after.predictions, names)
    return _moved(before.predictions, after.predictions, names)


def _labelled(labels: Counts, first: Counts, second: Counts, names: Sequence[str]) -> Chart:
    pairs = _counted(labels, second).sub(_counted(labels, first), fill_value=0)
    pairs = pairs[pairs != 0]
    of_class = pd.Series(labels).value_counts()
    table = _ranked(pairs, of_class, names, ("class", "predicted as", "images", "points"))
    finding = "No class's confusions changed in sum."
    if len(table):
        row, column, images, points = table.iloc[0]
        finding = f"The largest: {row} as {column}, {images:+,} images ({points:+.1f} points)."
    return Chart(
        name="confusion",
        title="How the confusions changed",
        x="predicted as",
        caption=(
            "The change of the share of each class (row) that is predicted as another (column). "
            f"A rise on the diagonal and falls beside it are what is wanted.{_left_out(names)}"
        ),
        grid=_grid(pairs, of_class, names, "points", "class"),
        table=table,
        finding=finding,
    )


def _moved(first: Counts, second: Counts, names: Sequence[str]) -> Chart:
    pairs = _counted(first, second)
    pairs = pairs[[i != j for i, j in pairs.index]]
    of_class = pd.Series(first).value_counts()
    columns = ("predicted before", "predicted after", "images", "%")
    table = _ranked(pairs, of_class, names, columns)
    finding = "No prediction changed."
    if len(table):
        row, column, images, share = table.iloc[0]
        finding = f"{pairs.sum():,} of {len(first):,} predictions changed, most of them {row} → "
        finding += f"{column}: {images:,} images ({share:.1f}%)."
    return Chart(
        name="confusion",
        title="Where predictions moved",
        x="predicted after",
        caption=(
            "Of what the source model predicted as one class (row), the share that the adapted "
            "model predicts as another (column). Which of the two is right, nobody can say without "
            f"labels.{_left_out(names)}"
        ),
        grid=_grid(pairs, of_class, names, "%", "predicted before"),
        table=table,
        finding=finding,
    )


def _names(before: Evaluation, after: Evaluation, classes: Sequence[str] | None) -> Sequence[str]:
    """Return a name for each class, the last of which stands for no prediction (index −1)."""
    seen = [before.predictions, after.predictions]
    seen += [] if before.labels is None else [before.labels]
    most = max(int(values.max(initial=-1)) + 1 for values in seen)
    k = max(most, before.classes or 0, after.classes or 0)
    given = list(classes or ())[:k]
    return [*given, *map(str, range(len(given), k)), _NONE]


def _counted(rows: Counts, columns: Counts) -> "pd.Series[int]":
    """Return how often each pair occurs, by (row, column)."""
    return pd.Series(1, pd.MultiIndex.from_arrays([rows, columns])).groupby(level=[0, 1]).sum()


def _ranked(
    pairs: "pd.Series[int]",
    of_class: "pd.Series[int]",
    names: Sequence[str],
    columns: Sequence[str],
) -> pd.DataFrame:
    """Return the pairs of the most images as rows: two names, images, share of the first."""
    order = pairs.abs().sort_values(ascending=False, kind="stable").index[:_PAIRS]
    rows = [
        (
            short(names[i], 60),
            short(names[j], 60),
            int(pairs[i, j]),
            float(100 * pairs[i, j] / of_class[i]),
        )
        for i, j in order
    ]
    return pd.DataFrame(rows, columns=list(columns))


def _grid(
    pairs: "pd.Series[int]",
    of_class: "pd.Series[int]",
    names: Sequence[str],
    unit: str,
    y: str,
) -> Grid:
    size = pairs.abs()
    total = size.groupby(level=0).sum().add(size.groupby(level=1).sum(), fill_value=0)
    chosen = total.sort_values(ascending=False, kind="stable").index[:SHOWN].tolist()
    if len(names) - 1 <= SHOWN:  # all of few, whether they changed or not
        chosen = [*range(len(names) - 1), *(i for i in chosen if i == -1)]
    places = {k: place for place, k in enumerate(sorted(chosen, key=lambda k: k % len(names)))}
    values = np.zeros((len(places), len(places)))
    for (i, j), count in zip(pairs.index, pairs, strict=True):
        if i in places and j in places:
            values[places[i], places[j]] = 100 * count / of_class[i]
    part = [names[k] for k in places]
    return Grid(values, part, part, unit, y)


def _left_out(names: Sequence[str]) -> str:
    k = len(names) - 1
    return f" The {SHOWN} of {k:,} classes with the most changes." if k > SHOWN else ""
