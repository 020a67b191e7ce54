"""What a page holds, and how it becomes HTML."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from adaptkit.report.cells import written


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and a table that can be sorted.

    Args:
        title: of the section.
        text: what the table shows, and what it cannot say.
        table: its rows; figures are aligned to the right, an unknown is empty.
        signed: columns whose figures are changes, shown with their sign and coloured by it.
    """

    title: str
    text: str
    table: pd.DataFrame
    signed: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A title, the answer in a sentence, sections, and the lines that repeat it."""

    title: str
    answer: str
    sections: Sequence[Section]
    repeat: Sequence[str] = ()


@dataclass(frozen=True)
class _Cell:
    text: str
    key: str  # what it is sorted by: a number, or the text
    kind: str  # of a CSS class: "figure", "rise", "fall" or "name"


def render(page: Page) -> str:
    """Return the page as HTML.

    Everything that comes from outside is escaped, and the page's own content policy forbids all
    scripts but the one in it and every request.

    >>> frame = pd.DataFrame({"run": ["<script>"], "change": [0.25]})
    >>> html = render(Page("Runs", "One run.", [Section("All", "", frame, signed=["change"])]))
    >>> "<bdi>&lt;script&gt;</bdi>" in html, "+0.25" in html
    (True, True)
    """
    script, sheet = (_resource(f"page.{end}") for end in ("js", "css"))
    template = _ENVIRONMENT.from_string(_resource("page.html"))
    return template.render(
        page=page,
        tables=[_cells(section) for section in page.sections],
        script=script,
        sheet=sheet,
        policy=(
            f"default-src 'none'; img-src data:; style-src {_hash(sheet)}; "
            f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
        ),
    )


_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def _resource(name: str) -> str:
    return files("adaptkit.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source that allows this very text inline (CSP level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _cells(section: Section) -> list[list[_Cell]]:
    signed = [column in section.signed for column in section.table.columns]
    return [
        [_cell(value, sign) for value, sign in zip(row, signed, strict=True)]
        for row in section.table.itertuples(index=False)
    ]


def _cell(value: Any, signed: bool) -> _Cell:
    text = written(value)
    if isinstance(value, str) or not text:
        return _Cell(text, text, "name")
    number = float(value)
    if not signed:
        return _Cell(text, repr(number), "figure")
    kind = "rise" if number > 0 else "fall" if number < 0 else "figure"
    return _Cell(f"+{text}" if number > 0 else text, repr(number), kind)
