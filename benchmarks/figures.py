"""Figures that several benchmarks draw; colours of Okabe and Ito, safe for colour-blind readers."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptkit.plotting import new_figure
from benchmarks.methods import EXACT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def style(number: int) -> dict[str, Any]:
    """Return a colour and a marker, of line after line."""
    again = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + again) % len(MARKERS)],
        "linestyle": ("-", "--", ":")[again % 3],
    }


def lines(
    axes: "Axes",
    frame: pd.DataFrame,
    *,
    x: str,
    y: str = "after",
    by: str = "method",
    percent: bool = True,
) -> None:
    """Draw the mean of `y` against `x`, a line for each of `by`, numbered by their first rows."""
    for number, (name, part) in enumerate(frame.groupby(by, sort=False)):
        mean = part.groupby(x, sort=False)[y].mean() * (100 if percent else 1)
        axes.plot(mean.index, mean.to_numpy(), label=str(name), markersize=5, **style(number))
    axes.grid(alpha=0.3)


def legend_below(drawn: "Figure", axes: "Axes", columns: int = 4) -> None:
    """Put one legend for all panels under them."""
    drawn.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
        frameon=False,
    )


def paired_dots(frame: pd.DataFrame, *, panel: str, group: str) -> "Figure":
    """Draw each training before and after exact statistics, a panel a case, a colour a group."""
    part = frame[frame["method"] == EXACT]
    panels, groups = part[panel].unique(), list(part[group].unique())
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    drawn = new_figure(3.2 * across, 3.2 * down + 0.6)
    grid = drawn.subplots(down, across, sharey=True, squeeze=False)
    every = list(grid.flat)
    for axes in every[len(panels) :]:
        axes.remove()
    for axes, name in zip(every, panels, strict=False):
        for number, key in enumerate(groups):
            of_group = part[(part[panel] == name) & (part[group] == key)]
            look = style(number)
            for place, (_, row) in enumerate(of_group.iterrows()):
                label = key if place == 0 else None
                axes.plot(
                    [number - 0.2, number + 0.2],
                    [100 * row["before"], 100 * row["after"]],
                    label=label,
                    **look,
                )
        axes.set_title(str(name))
        axes.set_xticks(range(len(groups)), ["before → after"] * len(groups), fontsize=7)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    legend_below(drawn, every[0], len(groups))
    return drawn


def bars(
    frame: pd.DataFrame, *, rows: str, value: str, label: str, title: str, by: str | None = None
) -> "Figure":
    """Draw lying bars of the median of `value`, a bar for each of `rows`, a colour for each `by`.

    A dot is a single run.
    """
    names = list(frame[rows].unique())
    groups = [("", frame)] if by is None else list(frame.groupby(by, sort=False))
    drawn = new_figure(9, 1.2 + 0.35 * len(names) * max(1, len(groups) * 0.6))
    axes = drawn.subplots()
    height = 0.8 / len(groups)
    for number, (name, part) in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * height
        medians = part.groupby(rows)[value].median().reindex(names)
        places = {row: place + shift for place, row in enumerate(names)}
        colour = COLOURS[number % len(COLOURS)]
        axes.barh([*places.values()], medians, height, label=str(name), color=colour, alpha=0.8)
        axes.plot(part[value], part[rows].map(places), "k.", markersize=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=label, title=title)
    axes.grid(axis="x", alpha=0.3)
    if by is not None:
        axes.legend(fontsize="small")
    return drawn
