"""How precise the statistics are, and how much more images would buy."""

from math import isfinite

import numpy as np
import pandas as pd

from adaptkit.estimation import Statistics
from adaptkit.report.charts.chart import Chart, Panel, Role, Series, percent

_ROUNDING = 1e-6  # errors below it are of the arithmetic, where all images are the same
_ROLES: tuple[Role, Role] = ("one", "other")


def precision_chart(statistics: Statistics | None) -> Chart | None:
    """Return the standard errors against the number of images; None where they are unknown."""
    errors = {n: e for n, e in (statistics.errors() if statistics else {}).items() if isfinite(e)}
    if statistics is None or statistics.samples < 2 or max(errors.values(), default=0) < _ROUNDING:
        return None
    n = statistics.samples
    counts = np.unique(np.geomspace(min(8, n), 16 * n, 60).round())
    named = sorted(errors, key=lambda name: errors[name])
    picked = {"the worst layer": named[-1]}
    if len(named) > 1:
        picked["the middle layer"] = named[(len(named) - 1) // 2]
    series, rows = [], []
    for (title, layer), role in zip(picked.items(), _ROLES, strict=False):
        curve = 100 * errors[layer] * np.sqrt(n / counts)
        at = np.array([float(n)]), np.array([100 * errors[layer]])
        series += [
            Series(f"{title}, by 1/√n", counts, curve, role, "line"),
            Series(f"{title}, as measured", *at, role, labels=[layer]),
        ]
    for share in (0.25, 0.5, 1, 2, 4):
        count = round(n * share)
        if count >= 1:
            by_layer = [100 * errors[layer] * np.sqrt(n / count) for layer in picked.values()]
            rows.append((count, *by_layer))
    worst = errors[named[-1]]
    wanted = max(round(n * (worst / 0.02) ** 2), 2)
    return Chart(
        name="precision",
        title="Would more images make the statistics more precise?",
        x="number of images",
        panels=[
            Panel(
                "",
                series,
                "relative standard error, %",
                f"With {n:,} images the worst layer's is {percent(worst)}; 2% would take about "
                f"{wanted:,} images.",
            )
        ],
        caption=(
            "The larger of the errors of means (in standard deviations) and of log-variances, from "
            "the spread between images. It falls with the square root of their number, as drawn "
            "from the one measured."
        ),
        table=pd.DataFrame(rows, columns=["images", *(f"{title}, %" for title in picked)]),
        log="xy",
    )
