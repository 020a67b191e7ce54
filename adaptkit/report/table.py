"""Report schema 1: one row a figure, before and after, as a DataFrame, CSV and JSON."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from adaptkit.files import write_files
from adaptkit.report.cells import encodable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adaptkit.report.charts import Chart
    from adaptkit.report.pictures import Picture

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
        charts: what `figures` and `to_html` draw.
        pictures: images whose prediction changed, for `to_html`.
    """

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    charts: tuple["Chart", ...] = field(default=(), repr=False, compare=False)
    pictures: tuple["Picture", ...] = field(default=(), repr=False, compare=False)

    def row(self, metric: str, scope: str = "all") -> Row | None:
        """Return the row of a metric and scope, or None where that is unknown."""
        return next((r for r in self.rows if (r.metric, r.scope) == (metric, scope)), None)

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with the columns of schema 1; an unknown is missing."""
        frame = pd.DataFrame([_known(row) for row in self.rows], columns=list(Row.__annotations__))
        return frame.astype({"n": "Int64"} | dict.fromkeys(_NUMBERS, "float64"))

    def to_dict(self) -> dict[str, float]:
        """Return ``metric/scope/before``, ``/after`` and ``/change`` -> value, for any logger.

        Unknown figures are left out, and the scope of whole-set ones. In a scope, what is not a
        letter, digit, "_", ".", "-" or a space becomes "_", as MLflow wants it; what would then be
        one name twice gets its number.

        >>> Report((Row("recall", "class:a", 0.5, 1.0, 0.5),)).to_dict()
        {'recall/class_a/before': 0.5, 'recall/class_a/after': 1.0, 'recall/class_a/change': 0.5}
        """
        found: dict[str, float] = {}
        taken: set[str] = set()
        for row in self.rows:
            scope = "" if row.scope == "all" else f"/{_NOT_IN_NAMES.sub('_', row.scope)}"
            base = f"{row.metric}{scope}"
            others = (f"{base}_{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([base], others) if name not in taken)
            taken.add(name)
            known = _known(row)
            found |= {f"{name}/{when}": known[when] for when in _WHEN if known[when] is not None}
        return found

    def log_to(self, writer: Any, step: int | None = None) -> None:
        """Log `to_dict` as scalars to TensorBoard.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``, or what has its `add_scalar`.
            step: the writer's global step.
        """
        for name, value in self.to_dict().items():
            writer.add_scalar(name, value, step)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the whole-set figures, and how many more rows there are."""
        frame = self.to_frame()
        whole = frame[frame["scope"] == "all"].drop(columns="scope")
        table = whole.to_html(index=False, na_rep="", float_format="{:.4g}".format, border=0)
        more = len(frame) - len(whole)
        return table + (f"<p>{more:,} more rows in to_frame().</p>" if more else "")

    def figures(self) -> dict[str, "Figure"]:
        """Draw the report's charts for papers: name -> a matplotlib figure.

        Names, as far as there is something to show: layers, channels, recall, shares, reliability,
        confusion, confidence, entropy, precision, projection. Save one by
        ``report.figures()["layers"].savefig("layers.pdf")``.

        Raises:
            DependencyError: matplotlib is not installed (``pip install adaptkit[plot]``).
        """
        from adaptkit.report.drawing import draw

        return {chart.name: draw(chart) for chart in self.charts}

    def to_html(self, path: str | Path | None = None) -> str | None:
        """Write one self-contained page to `path`; without it, return the text.

        It opens from disk, asks for nothing elsewhere, and shows the answer in a sentence, every
        figure, the charts, and what it takes to repeat the run.

        Raises:
            OutputError: `path` cannot be written.
        """
        from adaptkit.report.page import render, run_page

        text = render(run_page(self))
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None

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
        # What of a file name is no text in any encoding is in it by JSON's own escapes.
        text = encodable(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        if path is None:
            return text
        write_files({Path(path): text.encode()})
        return None


def _known(row: Row) -> dict[str, Any]:
    """Return a row's fields; a figure that is not finite is unknown."""
    found = asdict(row)
    for name, value in found.items():
        if isinstance(value, float) and not isfinite(value):
            found[name] = None
        elif isinstance(value, str):  # a class may be called after a folder
            found[name] = encodable(value)
    return found


_WHEN = ("before", "after", "change")
_NOT_IN_NAMES = re.compile(r"[^\w.\- ]")
_NUMBERS = ("before", "after", "change", "ci_low", "ci_high", "p_value")
