"""Each class before and after: how much of it is found, how often it is predicted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from adaptkit.report.cells import short
from adaptkit.report.charts.chart import Chart, Panel, Series
from adaptkit.report.table import Row

_PREFIX = "class:"


def recall_chart(rows: Sequence[Row]) -> Chart | None:
    """Return the recall of each class, or of segmentation the IoU; None without labels."""
    for metric, word, more in (
        ("recall", "recall", " Its images and the p-value of the change stand in the table."),
        ("iou", "intersection over union", ""),
    ):
        chart = _chart(
            rows,
            metric,
            name="recall",
            title="Which classes gain, which lose",
            label=f"{word} of the class, %",
            caption=(
                "In order of the change, the loss first. A class of few images moves by chance "
                f"alone.{more}"
            ),
        )
        if chart:
            return chart
    return None


def share_chart(rows: Sequence[Row]) -> Chart | None:
    """Return how often each class is predicted, which needs no labels."""
    return _chart(
        rows,
        "predicted_share",
        name="shares",
        title="How often each class is predicted",
        label="share of the predictions, %",
        caption=(
            "Shares that draw apart from those that you expect of the target are a warning, and so "
            "is a class that is hardly ever predicted any more. AdaBN takes the target to have the "
            "source's mix of classes."
        ),
    )


def _chart(
    rows: Sequence[Row], metric: str, *, name: str, title: str, label: str, caption: str
) -> Chart | None:
    found = [
        r
        for r in rows
        if r.metric == metric
        and r.scope.startswith(_PREFIX)
        and None not in (r.before, r.after, r.change)
    ]
    if not found:
        return None
    found.sort(key=lambda r: r.change or 0.0)
    names = [r.scope.removeprefix(_PREFIX) for r in found]
    before, after = (100 * np.array([getattr(r, w) for r in found]) for w in ("before", "after"))
    place = np.arange(len(found), dtype=np.float64)
    series = [
        Series("before", place, before, "before", labels=names),
        Series("after", place, after, "after", labels=names),
    ]
    least, most = short(names[0], 60), short(names[-1], 60)
    rest = f", {most} by {after[-1] - before[-1]:+.1f}" if len(found) > 1 else ""
    rose, fell = int((after > before).sum()), int((after < before).sum())
    table = pd.DataFrame({"class": names, "before, %": before, "after, %": after})
    table["change, points"] = after - before
    if any(r.n is not None and r.p_value is not None for r in found):
        table["p"] = [r.p_value for r in found]
        table["images"] = pd.array([r.n for r in found], dtype="Int64")
    return Chart(
        name=name,
        title=title,
        x="class",
        panels=[
            Panel(
                "",
                series,
                label,
                f"Of {len(found):,} classes {rose:,} rose and {fell:,} fell; {least} changed "
                f"by {after[0] - before[0]:+.1f} points{rest}.",
            )
        ],
        caption=caption,
        table=table,
        ticks=names,
    )
