"""How sure the model is of each image, before and after."""

from math import log

import numpy as np
import pandas as pd

from adaptkit.dense import DenseEvaluation
from adaptkit.evaluation import Evaluation
from adaptkit.report.charts.chart import Chart, Floats, Panel, Series

_BINS = 20
Scored = Evaluation | DenseEvaluation


def confidence_chart(before: Scored, after: Scored) -> Chart | None:
    """Return how the largest probability is distributed; None where none is known."""
    return _chart(
        "confidence",
        "How sure the model is",
        f"confidence (largest probability{_of_pixels(before)})",
        (before.confidence, after.confidence),
        np.linspace(0, 1, _BINS + 1),
        "A model that is sure of everything can be wrong about everything: on images far from "
        "those it was trained on, confidence says little.",
    )


def entropy_chart(before: Scored, after: Scored) -> Chart | None:
    """Return how the entropy of the probabilities is distributed; None where none is known."""
    known = np.concatenate([before.entropy, after.entropy])
    known = known[np.isfinite(known)]
    classes = before.classes
    most = log(classes) if classes else float(known.max(initial=0)) or 1.0
    between = f", undecided between all {classes:,} classes" if classes else ""
    return _chart(
        "entropy",
        "How undecided the model is",
        f"entropy of the prediction, nats{_of_pixels(before)}",
        (before.entropy, after.entropy),
        np.linspace(0, most, _BINS + 1),
        f"From 0, sure, to {most:.2f}{between}. "
        "Entropy that falls mostly goes with a gain in accuracy, but not always: it falls too when "
        "a model collapses onto a few classes.",
    )


def _of_pixels(scored: Scored) -> str:
    return ", mean over pixels" if isinstance(scored, DenseEvaluation) else ""


def _chart(
    name: str, title: str, x: str, pair: tuple[Floats, Floats], edges: Floats, caption: str
) -> Chart | None:
    values = [v[np.isfinite(v)] for v in pair]
    if not all(map(len, values)):
        return None
    shares = [100 * np.histogram(np.clip(v, 0, edges[-1]), edges)[0] / len(v) for v in values]
    series = [
        Series(role, edges, np.append(share, share[-1]), role, "steps")  # type: ignore[arg-type]
        for role, share in zip(("before", "after"), shares, strict=True)
    ]
    finding = "The median is {:.3g} before and {:.3g} after.".format(*map(np.median, values))
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:]})
    table["before, %"], table["after, %"] = shares
    return Chart(
        name=name,
        title=title,
        x=x,
        panels=[Panel("", series, "share of the images, %", finding)],
        caption=caption,
        table=table,
    )
