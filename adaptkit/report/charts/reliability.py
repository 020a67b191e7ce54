"""Whether a model is right as often as it is sure."""

import numpy as np
import pandas as pd

from adaptkit.calibration import BINS, equal_width
from adaptkit.evaluation import Evaluation
from adaptkit.paired import wilson
from adaptkit.report.charts.chart import Chart, Panel, Series, percent


def reliability_chart(before: Evaluation, after: Evaluation) -> Chart | None:
    """Return the reliability diagrams of both models; None without labels.

    Source: Guo et al. 2017, arXiv 1706.04599, figure 1; the bins are those of the report's ece.
    """
    if before.correct is None or after.correct is None:
        return None
    tables = {name: _bins(e) for name, e in (("before", before), ("after", after))}
    if not all(map(len, tables.values())):
        return None
    ends = np.array([0.0, 1.0])
    series = [Series("as sure as right", ends, ends, "guide", "line")]
    series += [
        Series(
            name,
            table["confidence"].to_numpy(),
            table["accuracy"].to_numpy(),
            name,  # type: ignore[arg-type]
            "line",
            low=table["from"].to_numpy(),
            high=table["to"].to_numpy(),
            labels=[f"{n:,} images" for n in table["images"]],
        )
        for name, table in tables.items()
    ]
    gaps = {name: _gap(table) for name, table in tables.items()}
    finding = (
        f"Confidence and accuracy lie apart by {percent(gaps['before'])} before and "
        f"{percent(gaps['after'])} after (expected calibration error)."
    )
    every = [table.assign(model=name) for name, table in tables.items()]
    columns = ["model", "confidence", "accuracy", "from", "to", "images"]
    return Chart(
        name="reliability",
        title="Is the model right as often as it is sure?",
        x="confidence (mean of the bin)",
        panels=[Panel("", series, "accuracy in the bin", finding)],
        caption=(
            f"{BINS} bins of equal width; each point is a bin with its 95% Wilson interval. Below "
            "the diagonal the model is surer than it is right."
        ),
        table=pd.concat(every)[columns],
        limits=((0, 1), (0, 1)),
    )


def _bins(evaluation: Evaluation) -> pd.DataFrame:
    known = np.isfinite(evaluation.confidence)
    confidence = evaluation.confidence[known]
    assert evaluation.correct is not None  # noqa: S101  it has labels
    correct = evaluation.correct[known]
    bins = equal_width(confidence)
    rows = []
    for number in np.unique(bins):
        here = bins == number
        n, right = int(here.sum()), int(correct[here].sum())
        rows.append((float(confidence[here].mean()), right / n, *wilson(right, n), n))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "from", "to", "images"])


def _gap(table: pd.DataFrame) -> float:
    apart = (table["confidence"] - table["accuracy"]).abs()
    return float((apart * table["images"]).sum() / table["images"].sum())
