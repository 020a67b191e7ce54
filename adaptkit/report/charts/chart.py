"""A chart as data: what is drawn, in which units, and what it says in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Role = Literal["before", "after", "source", "guide", "one", "other"]


@dataclass(frozen=True)
class Series:
    """Points that belong together; what is not finite is not drawn.

    Args:
        name: in the legend.
        x: shape (n,).
        y: shape (n,).
        role: what its colour and marker say: before or after adapting, the source, a guide, or one
            of two things otherwise.
        form: points, a line through them, or steps, which hold from each x to the next.
        low: shape (n,), the lower end of an interval around y; None where there is none.
        high: shape (n,), its upper end.
        labels: what each point is, n of them or none.
    """

    name: str
    x: Floats
    y: Floats
    role: Role
    form: Literal["points", "line", "steps"] = "points"
    low: Floats | None = None
    high: Floats | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """A table of changes as colours: below zero one hue, above it the other.

    Args:
        values: shape (rows, columns).
        rows: their names.
        columns: their names.
        unit: of the values.
        y: the label of the rows' axis; that of the columns' is the chart's x.
    """

    values: Floats
    rows: Sequence[str]
    columns: Sequence[str]
    unit: str
    y: str


@dataclass(frozen=True)
class Panel:
    """One view of a chart that has several to choose from.

    Args:
        name: what is chosen.
        series: as in a chart.
        y: the label of its y axis.
        finding: what it shows, in a sentence.
    """

    name: str
    series: Sequence[Series]
    y: str
    finding: str


@dataclass(frozen=True)
class Chart:
    """One question's answer as a picture.

    Args:
        name: a word, by which `Report.figures` names it.
        title: the question or what is shown.
        x: the label of the x axis, with its unit.
        panels: what is drawn, or several views of it to choose from.
        caption: how to read it, and what it cannot say.
        table: its figures as text, of many points a summary.
        ticks: names of x = 0, 1, 2 …; by default numbers.
        log: "", or the axes of logarithmic scale: "y" or "xy".
        limits: the ranges of x and y, where they are fixed.
        grid: drawn in place of panels.
        choice: what the panels are to choose from, such as "Layer".
        first: the panel that is shown first.
        finding: what a grid shows, in a sentence; a panel has its own.
    """

    name: str
    title: str
    x: str
    caption: str
    panels: Sequence[Panel] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    ticks: Sequence[str] = ()
    log: Literal["", "y", "xy"] = ""
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None
    grid: Grid | None = None
    choice: str = ""
    first: int = 0
    finding: str = ""


def percent(share: float) -> str:
    """Return a share as a person reads it.

    >>> percent(0.1234)
    '12.3%'
    """
    return f"{100 * share:.1f}%"
