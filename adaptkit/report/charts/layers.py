"""How far the target lies from what each norm layer stores, and within a layer each channel."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
import pandas as pd

from adaptkit.norms import Stored
from adaptkit.report.cells import short
from adaptkit.report.charts.chart import Chart, Floats, Panel, Series
from adaptkit.report.layers import variances
from adaptkit.report.table import Row

POINTS = 33  # of a layer's channels; more are drawn as so many quantiles
_METRICS = {
    "symmetric_kl": ("Divergence", "symmetric KL, nats"),
    "mean_shift": ("Means", "shift of the means, standard deviations"),
    "log_var_shift": ("Variances", "shift of the log-variances, nats"),
}
_PREFIX = "layer:"


def layer_chart(rows: Sequence[Row]) -> Chart | None:
    """Return the shift of each layer along the depth, before and after; None without layers."""
    found = {
        metric: [r for r in rows if r.metric == metric and r.scope.startswith(_PREFIX)]
        for metric in _METRICS
    }
    names = [r.scope.removeprefix(_PREFIX) for r in found["symmetric_kl"]]
    if not names:
        return None
    table = pd.DataFrame({"layer": names})
    panels = []
    for metric, (title, label) in _METRICS.items():
        before, after = (_floats([getattr(r, w) for r in found[metric]]) for w in _WHEN)
        table[f"{title.lower()} before"], table[f"{title.lower()} after"] = before, after
        panels.append(Panel(title, _pair(before, after, names), label, _finding(before, names)))
    return Chart(
        name="layers",
        title="Where along the depth the domain moved",
        x="norm layer, input to output",
        panels=panels,
        caption=(
            "How far what a layer sees of the target lies from what it stores, as the mean over "
            "its channels (of the shifts the root mean square). A change of the mix of "
            "classes shows here too, most in deep layers."
        ),
        table=table,
        ticks=names,
        choice="Show",
    )


def channel_chart(before: Mapping[str, Stored], target: Mapping[str, Stored]) -> Chart | None:
    """Return the shift of each channel of a layer to be picked; None where there is no layer."""
    names = [name for name in target if name in before]
    if not names:
        return None
    panels, worst, rows = [], 0, []
    most = -1.0
    for number, name in enumerate(names):
        means, logs = _channels(before[name], target[name])
        size = float(np.sqrt(np.mean(np.square(means)) + np.mean(np.square(logs))))
        if size > most:
            most, worst = size, number
        share = np.linspace(0, 100, min(len(means), POINTS))
        curves = [np.quantile(values, share / 100) for values in (means, logs)]
        panels.append(
            Panel(
                name,
                [
                    Series("mean, in standard deviations", share, curves[0], "one", "line"),
                    Series("log-variance, in nats", share, curves[1], "other", "line"),
                ],
                "shift of the channel",
                f"{len(means):,} channels; half of the means moved by {_middle(means)} standard "
                f"deviations or less, the farthest by {np.abs(means).max():.2g}.",
            )
        )
        rows.append((name, len(means), *_five(means), *_five(logs)))
    columns = ["layer", "channels"]
    columns += [f"{what}, {q}" for what in ("mean", "log-variance") for q in _FIVE]
    return Chart(
        name="channels",
        title="The channels of one layer",
        x="share of the layer's channels, %",
        panels=panels,
        caption=(
            "The target's mean and variance in each channel against what the source model stores, "
            "in order of size, each curve by itself. Flat at zero: nothing moved. Log-variances "
            "flat beside zero: a change of contrast. Means that spread to both sides: brightness "
            "or colour, which filters of either sign see."
        ),
        table=pd.DataFrame(rows, columns=columns),
        choice="Layer",
        first=worst,
    )


def _pair(before: Floats, after: Floats, names: Sequence[str]) -> list[Series]:
    depth = np.arange(len(names), dtype=np.float64)
    return [
        Series("before", depth, before, "before", "line", labels=names),
        Series("after", depth, after, "after", "line", labels=names),
    ]


def _finding(before: Floats, names: Sequence[str]) -> str:
    known = np.where(np.isfinite(before), before, -np.inf)
    most = int(known.argmax())
    return f"The largest before adapting is {before[most]:.3g}, at {short(names[most], 60)}."


def _channels(stored: Stored, target: Stored) -> tuple[Floats, Floats]:
    a, b = (v.double().cpu() for v in variances(stored, target))
    means = (target.mean.double().cpu() - stored.mean.double().cpu()) / a.sqrt()
    return np.nan_to_num(means.numpy()), np.nan_to_num((b.log() - a.log()).numpy())


def _middle(values: Floats) -> str:
    return f"{np.median(np.abs(values)):.2g}"


_FIVE = {"least": 0, "quarter": 25, "median": 50, "three quarters": 75, "most": 100}
_WHEN = ("before", "after")


def _five(values: Floats) -> list[float]:
    return [float(v) for v in np.percentile(values, [*_FIVE.values()])]


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([v if v is not None and isfinite(v) else np.nan for v in values])
