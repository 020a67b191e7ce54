"""Report schema 1: one row a figure, before and after, as a DataFrame, CSV and JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from adaptkit.files import write_files

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """A figure before and after; ci and p-value are of the change; None is unknown, never 0."""

    metric: str
    scope: str
    before: float | None
    after: float | None
    change: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Report:
    """Figures before and after adapting, and everything needed to repeat the run.

    Args:
        rows: one a figure.
        details: what the JSON file holds beside the rows: versions, arguments, counts.
    """

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self, metric: str, scope: str = "all") -> Row | None:
        """Return the row of a metric and scope, or None where that is unknown."""
        return next((r for r in self.rows if (r.metric, r.scope) == (metric, scope)), None)

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with the columns of schema 1; an unknown is missing."""
        frame = pd.DataFrame([_known(row) for row in self.rows], columns=list(Row.__annotations__))
        return frame.astype({"n": "Int64"} | dict.fromkeys(_NUMBERS, "float64"))

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Write UTF-8 CSV of schema 1 to `path`, whole or not at all; without it, return the text.

        Raises:
            OutputError: `path` cannot be written.
        """
        text = self.to_frame().to_csv(index=False, lineterminator="\n")
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None

    def to_json(self, path: str | Path | None = None) -> str | None:
        """Write the details and rows as JSON to `path`; without it, return the text.

        Raises:
            OutputError: `path` cannot be written.
        """
        record = {"schema": SCHEMA, **self.details, "rows": [_known(row) for row in self.rows]}
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None


def _known(row: Row) -> dict[str, Any]:
    """Return a row's fields; a figure that is not finite is unknown."""
    return {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in asdict(row).items()
    }


_NUMBERS = ("before", "after", "change", "ci_low", "ci_high", "p_value")
