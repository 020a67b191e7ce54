"""Words on images as words on samples, where a target is of signals or of features."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptkit.report.charts import Chart, Panel

_IMAGE = re.compile(r"\b(?:(?P<an>[Aa])n )?(?P<first>[Ii])mage(?P<more>s?)\b")


def of_what(details: Mapping[str, Any]) -> str:
    """Return what a report is of, "images" or "samples"."""
    return str(details.get("of") or "images")


def told(text: str, of: str) -> str:
    """Return a sentence of ours on images as one on what a report is of.

    >>> told("Images of each class; an image or more.", "samples")
    'Samples of each class; a sample or more.'
    """
    return text if of == "images" else _IMAGE.sub(_sample, text)


def _sample(found: re.Match[str]) -> str:
    article = f"{found['an']} " if found["an"] else ""
    return f"{article}{'S' if found['first'] == 'I' else 's'}ample{found['more']}"


def chart_told(chart: Chart, of: str) -> Chart:
    """Return a chart whose words are on what a report is of."""
    if of == "images":
        return chart
    return replace(
        chart,
        title=told(chart.title, of),
        x=told(chart.x, of),
        caption=told(chart.caption, of),
        finding=told(chart.finding, of),
        panels=[_panel_told(panel, of) for panel in chart.panels],
        table=chart.table.rename(columns=lambda name: told(str(name), of)),
    )


def _panel_told(panel: Panel, of: str) -> Panel:
    series = [
        replace(one, labels=[told(label, of) for label in one.labels]) for one in panel.series
    ]
    return replace(panel, y=told(panel.y, of), finding=told(panel.finding, of), series=series)
