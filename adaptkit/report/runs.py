"""Several runs side by side, from the reports that they wrote."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adaptkit.errors import DataError, shown
from adaptkit.report.table import Report, Row

_COLUMNS = list(Row.__annotations__)
_TEXT = ("metric", "scope")
# What a run is, from its JSON: name in the table -> where it stands there.
_ABOUT = {
    "source": ("arguments", "source"),
    "target": ("arguments", "target"),
    "method": ("method",),
    "seed": ("seed",),
    "samples": ("samples", "estimated"),
}
# Whole-set figures that tell runs apart; the first has its interval and p-value too.
METRICS = (
    "accuracy",
    "balanced_accuracy",
    "nll",
    "ece",
    "confidence_mean",
    "entropy_mean",
    "symmetric_kl",
)


def read_report(path: str | Path) -> Report:
    """Read a report's CSV, and what the JSON beside it says of the run, if it is there.

    Raises:
        DataError: the CSV cannot be read or is not a report of schema 1, or the JSON is broken.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(_TEXT, str), na_values=[""])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # of the encoding or the CSV
        raise DataError(f"{path} is not a report: expected CSV with the columns {_HEAD}") from None
    if list(frame.columns) != _COLUMNS or frame.empty:
        found = ",".join(map(str, frame.columns))
        raise DataError(f"Expected {path} to have the columns {_HEAD}, got {shown(found)}")
    try:
        rows = tuple(_row(dict(record)) for record in frame.to_dict("records"))
    except (TypeError, ValueError):
        raise DataError(f"{path} is not a report: a figure in it is not a number") from None
    return Report(rows, _details(path.with_suffix(".json")))


_HEAD = ",".join(_COLUMNS)


def _row(record: dict[Any, Any]) -> Row:
    figures = {k: None if pd.isna(v) else float(v) for k, v in record.items() if k not in _TEXT}
    n = figures.pop("n")
    texts = {k: "" if pd.isna(record[k]) else str(record[k]) for k in _TEXT}
    return Row(**texts, **figures, n=None if n is None else int(n))  # type: ignore[arg-type]


def _details(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path} beside the report: {shown(str(error))}") from None
    return found if isinstance(found, dict) else {}


def compare_runs(reports: Mapping[str, Report]) -> pd.DataFrame:
    """Return one row a run: what it is, and its whole-set figures before and after.

    Args:
        reports: name of the run -> its report.

    Returns:
        Columns run, source, target, method, seed and samples, as far as the runs' details say them;
        then for each whole-set metric that a run has "<metric> before" and "<metric> after", for
        accuracy also its change, 95% interval and p-value, and n. An unknown is missing.

    >>> row = Row("accuracy", "all", 0.5, 0.75, 0.25, 0.1, 0.4, 0.01, 8)
    >>> compare_runs({"a": Report((row,))})["accuracy after"].tolist()
    [0.75]
    """
    rows = []
    for name, report in reports.items():
        row: dict[str, Any] = {"run": name}
        row |= {key: _inside(report.details, *way) for key, way in _ABOUT.items()}
        for metric in METRICS:
            found = report.row(metric)
            if found is None:
                continue
            row |= {f"{metric} before": found.before, f"{metric} after": found.after}
            if metric == METRICS[0]:
                row |= {f"{metric} change": found.change, "ci_low": found.ci_low}
                row |= {"ci_high": found.ci_high, "p_value": found.p_value, "n": found.n}
        rows.append(row)
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    order = ["run", *_ABOUT, f"{METRICS[0]} before", f"{METRICS[0]} after"]
    order += [f"{METRICS[0]} change", "ci_low", "ci_high", "p_value", "n"]
    order += [f"{metric} {when}" for metric in METRICS[1:] for when in ("before", "after")]
    frame = frame[[column for column in order if column in frame]]
    whole = {name: "Int64" for name in ("seed", "samples", "n") if name in frame}
    return frame.astype(whole)


def _inside(details: Mapping[str, Any], *way: str) -> Any:
    """Return a value of details that may say anything: a text or a whole number, else None."""
    found: Any = details
    for key in way:
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        return None
    return found if isinstance(found, str) or abs(found) < 2**63 else None


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """Return a short name for each report: its file's, with as many folders as tell them apart.

    >>> names_of(["a/x.csv", "b/x.csv"]), names_of(["a/x.csv", "a/y.csv"])
    (['a/x', 'b/x'], ['x', 'y'])
    """
    parts = [Path(path).with_suffix("").parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
