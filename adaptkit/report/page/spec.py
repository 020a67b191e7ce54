"""Charts as plotly.js draws them, without colours: those are the page's, light or dark."""

import html
from collections.abc import Iterable
from typing import Any

import numpy as np

from adaptkit.report.cells import short
from adaptkit.report.charts import Chart, Grid, Series
from adaptkit.report.drawing import thinned

_TICKS = 20  # names on an axis at most
_ON_AXIS, _ON_HOVER = 18, 80  # characters of a name
_DIGITS = 4  # of a figure, which are more than can be seen
_SYMBOLS = {"before": "circle", "after": "square", "source": "triangle-up"}
_SYMBOLS |= {"one": "circle", "other": "square"}
_DASHES = {"before": "dash", "guide": "dot"}
_MANY = 40  # points that still get a marker on their line


def spec(chart: Chart) -> dict[str, Any]:
    """Return what the page's script needs to draw a chart: traces of each panel, and the layout.

    Each trace names its role in `meta`, by which the script colours it. Names are shortened and
    escaped, since plotly reads some HTML in texts.
    """
    if chart.grid is not None:
        return {
            "panels": [_panel("", chart.grid.y, [_heat(chart.grid)])],
            **_around(chart, chart.grid),
        }
    panels = [_panel(p.name, p.y, [_trace(s) for s in p.series], p.finding) for p in chart.panels]
    return {"panels": panels, **_around(chart)}


def _panel(name: str, y: str, data: list[Any], finding: str = "") -> dict[str, Any]:
    return {"name": name, "y": _text(y, 200), "data": data, "finding": finding}


def _around(chart: Chart, grid: Grid | None = None) -> dict[str, Any]:
    x: dict[str, Any] = {"title": {"text": _text(chart.x, 200)}}
    y: dict[str, Any] = {}
    if grid is not None:
        x |= _names(grid.columns) | {"constrain": "domain"}
        y |= _names(grid.rows) | {"autorange": "reversed", "scaleanchor": "x"}
        y |= {"constrain": "domain"}
    elif chart.ticks:
        x |= _names(chart.ticks)
    if "x" in chart.log:
        x["type"] = "log"
    if "y" in chart.log:
        y["type"] = "log"
    if chart.limits:
        x["range"], y["range"] = (list(map(_rounded, limits)) for limits in chart.limits)
    return {"first": chart.first, "layout": {"xaxis": x, "yaxis": y}}


def _names(names: Iterable[str]) -> dict[str, Any]:
    every = list(names)
    places = thinned(len(every), _TICKS)
    return {
        "zeroline": False,
        "showgrid": False,
        "tickmode": "array",
        "tickvals": places,
        "tickfont": {"size": 11 if len(places) > 12 else 13},
        "ticktext": [_text(every[i], _ON_AXIS) for i in places],
    }


def _trace(series: Series) -> dict[str, Any]:
    lines = series.form != "points"
    many = lines and len(series.x) > _MANY
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _text(series.name, _ON_HOVER),
        "meta": series.role,
        "mode": "lines" if many or series.form == "steps" or series.role == "guide" else "markers",
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "line": {"dash": _DASHES.get(series.role, "solid"), "width": 2},
        "marker": {"symbol": _SYMBOLS.get(series.role, "circle"), "size": 7},
        "hovertemplate": "%{y:.4g}",
    }
    if series.form == "line" and trace["mode"] == "markers":
        trace["mode"] = "lines+markers"
    if series.form == "points" and len(series.x) > 2 * _MANY:
        trace["marker"] |= {"size": 5, "opacity": 0.6}
    if series.form == "steps":
        trace["line"]["shape"] = "hv"
    if series.labels:
        trace["text"] = [_text(label, _ON_HOVER) for label in series.labels]
        trace["hovertemplate"] = "%{text}: %{y:.4g}"
    elif not lines:
        trace["hovertemplate"] = "%{x:.3g}, %{y:.3g}"
    if series.role == "guide":
        trace["hoverinfo"] = "skip"
        del trace["hovertemplate"]
    if series.low is not None and series.high is not None:
        reach = np.maximum([series.high - series.y, series.y - series.low], 0)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _numbers(reach[0]),
            "arrayminus": _numbers(reach[1]),
            "thickness": 1,
            "width": 3,
        }
    return trace


def _heat(grid: Grid) -> dict[str, Any]:
    most = float(np.abs(grid.values).max(initial=0)) or 1.0
    rows, columns = ([_text(n, _ON_HOVER) for n in names] for names in (grid.rows, grid.columns))
    return {
        "type": "heatmap",
        "meta": "grid",
        "z": [_numbers(row) for row in grid.values],
        "x": list(range(len(columns))),
        "y": list(range(len(rows))),
        "zmin": 0 if (grid.values >= 0).all() else -_rounded(most),
        "zmax": _rounded(most),
        "text": [[f"{row} as {column}" for column in columns] for row in rows],
        "hovertemplate": f"%{{text}}: %{{z:.3g}} {_text(grid.unit, 20)}<extra></extra>",
        "colorbar": {"title": {"text": _text(grid.unit, 20)}, "thickness": 12},
        "xgap": 1,
        "ygap": 1,
    }


def _text(text: str, most: int) -> str:
    # $...$ would be taken for mathematics.
    return html.escape(short(text, most), quote=False).replace("$", "&#36;")


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_rounded(float(v)) if np.isfinite(v) else None for v in values]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
