"""Cells of a table as a person reads them, and so that no program computes or obeys them."""

import math
from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def harmless(text: str) -> str:
    """Return text with an apostrophe before it where a spreadsheet would take it for a formula.

    Source: OWASP, "CSV Injection".

    >>> harmless("=1+1"), harmless("a=1")
    ("'=1+1", 'a=1')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def encodable(text: str) -> str:
    r"""Return text with an escape for what of a broken file name is no text in any encoding.

    >>> encodable("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV in which no name, of a column or in a cell, is a formula."""
    named = frame.rename(columns=lambda name: harmless(str(name)))
    return str(named.map(_harmless).to_csv(index=False, lineterminator="\n"))


def _harmless(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value


def as_markdown(frame: pd.DataFrame) -> str:
    """Return the table in Markdown: figures to four digits, an unknown empty, | escaped."""
    lines = [[*map(str, frame.columns)], ["---"] * len(frame.columns)]
    lines += [[written(value) for value in row] for row in frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def written(value: Any) -> str:
    """Return a value as a person reads it; an unknown is empty.

    >>> written(0.123456), written(None), written(12000)
    ('0.1235', '', '12,000')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def short(text: str, most: int) -> str:
    r"""Return a name on one line, in at most so many characters, all of them visible.

    What turns the direction of writing, and other marks that are not seen, become "\ufffd"; of
    nothing that can be seen, "(empty)".

    >>> short("a long name", 6), short("a\u202eb", 6)
    ('a lon…', 'a\ufffdb')
    """
    seen = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text[: 4 * most].split()))
    seen = seen or "(empty)"
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"
