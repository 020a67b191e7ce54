"""Charts as matplotlib draws them, for papers."""

from typing import TYPE_CHECKING

import numpy as np

from adaptkit.plotting import new_figure
from adaptkit.report.cells import short
from adaptkit.report.charts import Chart, Grid, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; markers differ as well.
COLOURS = {
    "before": "#d55e00",
    "after": "#0072b2",
    "source": "#009e73",
    "guide": "#777777",
    "one": "#9b3f7d",
    "other": "#8a6d00",
}
_MARKERS = {"before": "o", "after": "s", "source": "^", "guide": "", "one": "o", "other": "s"}
_DASHES = {"before": "--", "guide": ":"}
_SIDE_BY_SIDE = 3  # views at most
_TICKS = 24  # names on an axis at most
_LONGEST = 18  # characters of a name on an axis
_SMALL = 4.0  # points, of a marker


def draw(chart: Chart) -> "Figure":
    """Draw a chart; of several views all side by side, of many the first to be shown.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    if chart.grid is not None:
        return _of_grid(chart, chart.grid)
    panels = list(chart.panels)
    if len(panels) > _SIDE_BY_SIDE:
        panels = [panels[chart.first]]
    figure = new_figure(1.0 + 5.0 * len(panels), 3.8)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        _draw_panel(axes, chart, panel)
        axes.set_title(_plain(short(panel.name, 60)) if panel.name else "")
    figure.suptitle(_plain(chart.title))
    return figure


def _draw_panel(axes: "Axes", chart: Chart, panel: Panel) -> None:
    for series in panel.series:
        _draw_series(axes, series)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(panel.y)
    if "x" in chart.log:
        axes.set_xscale("log")
    if "y" in chart.log:
        axes.set_yscale("log")
    if chart.limits:
        axes.set_xlim(*chart.limits[0])
        axes.set_ylim(*chart.limits[1])
    if chart.ticks:
        places = thinned(len(chart.ticks), _TICKS)
        axes.set_xticks(places, [_plain(short(chart.ticks[i], _LONGEST)) for i in places])
        if len(chart.ticks) > 5 or max(map(len, chart.ticks)) > 8:
            axes.tick_params("x", rotation=90, labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_series(axes: "Axes", series: Series) -> None:
    colour = COLOURS[series.role]
    dash = _DASHES.get(series.role, "-")
    if series.form == "steps":
        axes.step(series.x, series.y, where="post", color=colour, label=series.name, linestyle=dash)
        return
    few = len(series.x) <= 2 * _TICKS
    marker = _MARKERS[series.role] if series.form == "points" or few else ""
    if series.low is not None and series.high is not None:
        reach = np.maximum([series.y - series.low, series.high - series.y], 0)
        axes.errorbar(series.x, series.y, reach, fmt="none", ecolor=colour, alpha=0.5)
    axes.plot(
        series.x,
        series.y,
        color=colour,
        label=series.name,
        linestyle=dash if series.form == "line" else "",
        marker=marker,
        markersize=_SMALL,
        alpha=0.6 if len(series.x) > 100 and series.form == "points" else 1,
    )


def _of_grid(chart: Chart, grid: Grid) -> "Figure":
    size = 2.5 + 0.28 * max(len(grid.rows), 5)
    figure = new_figure(size + 1.2, size)
    axes = figure.subplots()
    most = float(np.abs(grid.values).max(initial=0)) or 1.0
    signed = bool((grid.values < 0).any())
    image = axes.imshow(
        grid.values, cmap="PuOr" if signed else "Blues", vmin=-most if signed else 0, vmax=most
    )
    for names, axis in ((grid.columns, axes.xaxis), (grid.rows, axes.yaxis)):
        axis.set_ticks(range(len(names)), [_plain(short(name, _LONGEST)) for name in names])
    axes.tick_params("x", rotation=90)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(grid.y)
    figure.colorbar(image, ax=axes, label=grid.unit)
    axes.set_title(_plain(chart.title))
    return figure


def thinned(count: int, most: int) -> list[int]:
    """Return places for at most so many names, evenly apart.

    >>> thinned(5, 24), thinned(500, 4)
    ([0, 1, 2, 3, 4], [0, 125, 250, 375])
    """
    step = -(-count // most)
    return list(range(0, count, step))


def _plain(text: str) -> str:
    r"""Keep matplotlib from reading $...$ as mathematics."""
    return text.replace("$", r"\$")
