"""What a page holds, and how it becomes HTML."""

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from adaptkit.report.cells import written
from adaptkit.report.charts import Chart
from adaptkit.report.page.spec import spec
from adaptkit.report.pictures import Picture


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and what it is about.

    Args:
        title: of the section.
        text: what is shown, and what it cannot say.
        table: its rows; figures are aligned to the right, an unknown is empty. Sorts by a click.
        signed: columns whose figures are changes, shown with their sign and coloured by it.
        right: columns of text that is aligned to the right, as figures are.
        charts: drawn with their captions, and their figures as tables.
        pictures: small images with their predictions.
        items: a list.
    """

    title: str
    text: str = ""
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    signed: Sequence[str] = ()
    right: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A title, the answer in a sentence, what was decided, sections, and the lines to repeat it."""

    title: str
    answer: str
    sections: Sequence[Section]
    repeat: Sequence[str] = ()
    decision: str = ""


def render(page: Page) -> str:
    """Return the page as HTML.

    Everything that comes from outside is escaped, and the page's own content policy forbids all
    scripts but those in it and every request. plotly.js is packed in it where there are charts.

    >>> frame = pd.DataFrame({"run": ["<script>"], "change": [0.25]})
    >>> html = render(Page("Runs", "One run.", [Section("All", "", frame, signed=["change"])]))
    >>> "<bdi>&lt;script&gt;</bdi>" in html, "+0.25" in html
    (True, True)
    """
    script, sheet = (_resource(f"page.{end}") for end in ("js", "css"))
    charts = [chart for section in page.sections for chart in section.charts]
    packed, scripts = "", [_hash(script)]
    if charts:
        packed, of_library = _plotly()
        scripts.append(of_library)
    # plotly.js places its labels by inline styles and a sheet that it makes, hence unsafe-inline;
    # no style that comes from outside is ever written.
    styles = "'unsafe-inline'" if charts else _hash(sheet)
    template = _ENVIRONMENT.from_string(_resource("page.html"))
    return template.render(
        page=page,
        script=script,
        sheet=sheet,
        specs=_in_script({chart.name: spec(chart) for chart in charts}),
        plotly=packed,
        policy=(
            f"default-src 'none'; img-src data:; style-src {styles}; "
            f"script-src {' '.join(scripts)}; base-uri 'none'; form-action 'none'"
        ),
    )


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media};base64,{base64.b64encode(picture.data).decode()}"


def _resource(name: str) -> str:
    return files("adaptkit.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source that allows this very text inline (CSP level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@functools.cache
def _plotly() -> tuple[str, str]:
    """Return plotly.js, gzip in base64, and the source that allows it as a script."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    packed = gzip.compress(text.encode(), mtime=0)
    return base64.b64encode(packed).decode(), _hash(text)


def _in_script(value: Any) -> Markup:
    """Return JSON that no text in it can end the element of."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704  escaped above


@dataclass(frozen=True)
class _Cell:
    text: str
    key: str | None  # what it is sorted by, where that is not its text
    kind: str  # of a CSS class: "figure", "rise", "fall" or "name"


def _cells(table: pd.DataFrame, signed: Sequence[str], right: Sequence[str]) -> list[list[_Cell]]:
    kinds = ["signed" if c in signed else "right" if c in right else "" for c in table.columns]
    return [
        [_cell(value, kind) for value, kind in zip(row, kinds, strict=True)]
        for row in table.itertuples(index=False)
    ]


def _cell(value: Any, column: str) -> _Cell:
    text = written(value)
    if isinstance(value, str) or not text:
        return _Cell(text, None, "figure" if column == "right" else "name")
    number = float(value)
    key = None if text == repr(value) else f"{number:.9g}"
    if column != "signed":
        return _Cell(text, key, "figure")
    kind = "rise" if number > 0 else "fall" if number < 0 else "figure"
    return _Cell(f"+{text}" if number > 0 else text, key, kind)


_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.globals |= {"cells": _cells, "data_uri": _data_uri}
