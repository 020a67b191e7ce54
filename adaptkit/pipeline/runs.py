"""The reports of several runs, as one table in any form."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from adaptkit.errors import DataError
from adaptkit.report.cells import as_markdown, csv
from adaptkit.report.page import Page, Section, render
from adaptkit.report.runs import compare_runs, names_of, read_report

Form = Literal["csv", "md", "html"]


def compare_reports(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read the reports of several runs and return a row for each (see `compare_runs`).

    Confusion matrices, which lie beside reports, are passed over.

    Raises:
        DataError: a file is not a report, or stands twice, or none is left.
    """
    reports = [Path(path) for path in paths if not str(path).endswith(_CONFUSION)]
    if not reports:
        raise DataError("Expected the CSV files of one run or more, got confusion matrices alone")
    twice = [path for number, path in enumerate(reports) if path in reports[:number]]
    if twice:
        raise DataError(f"{twice[0]} stands twice: name each report once")
    found = [read_report(path) for path in reports]
    return compare_runs(dict(zip(names_of(reports), found, strict=True)))


def as_text(frame: pd.DataFrame, form: Form, paths: Sequence[str | Path] = ()) -> str:
    """Return the table of `compare_reports` as CSV, Markdown or one self-contained HTML page.

    Args:
        frame: the table.
        form: "csv", "md" or "html".
        paths: of the reports, for the line that makes the page again.
    """
    if form == "csv":
        return csv(frame)
    if form == "md":
        return as_markdown(in_text(readable(frame)))
    reports = [path for path in map(str, paths) if not path.endswith(_CONFUSION)]
    line = shlex.join(["adaptkit", "report", *reports, "--format", "html"])
    sections = [
        Section(
            "All runs",
            "A row a run; a column's name sorts by it. Where the target had no labels the accuracy "
            "is not known: confidence that rises and entropy that falls are hints, no more.",
            readable(frame),
            signed=[_CHANGE],
            right=["95% interval", "p"],
        )
    ]
    return render(Page("Runs compared", answer(frame), sections, [line]))


_CONFUSION = "-confusion.csv"
_CHANGE = "change, points"
_READABLE = {
    **{name: name for name in ("run", "target", "method", "seed")},
    "accuracy before": "accuracy before, %",
    "accuracy after": "after, %",
    "accuracy change": _CHANGE,
    "interval": "95% interval",
    "p_value": "p",
    "n": "images",
    "entropy_mean before": "entropy before, nats",
    "entropy_mean after": "after, nats",
    "symmetric_kl before": "symmetric KL before, nats",
}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what a person wants of the table: percentages, and an interval in one column."""
    found = frame.copy()
    for name in ("accuracy before", "accuracy after", "accuracy change"):
        if name in found:
            found[name] = (100 * found[name]).round(1)
    if "ci_low" in found:
        found["interval"] = [
            None if pd.isna(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
            for low, high in zip(found["ci_low"], found["ci_high"], strict=True)
        ]
    if "p_value" in found:
        found["p_value"] = [_p_value(p) for p in found["p_value"]]
    nats = [name for name in _READABLE if _READABLE[name].endswith(", nats") and name in found]
    found[nats] = found[nats].round(3)
    return found[[name for name in _READABLE if name in found]].rename(columns=_READABLE)


def in_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a readable table whose percentages are text with one decimal, changes with a sign."""
    found = frame.copy()
    for name, form in (("accuracy before, %", ".1f"), ("after, %", ".1f"), (_CHANGE, "+.1f")):
        if name in found:
            found[name] = [None if pd.isna(v) else format(v, form) for v in found[name]]
    return found


def _p_value(p: float) -> str | None:
    return None if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def answer(frame: pd.DataFrame, noun: str = "run") -> str:
    """Say in a sentence or two what the runs come to; `noun` is what one of them is called."""
    runs = f"{len(frame):,} {noun}{'' if len(frame) == 1 else 's'}"
    if "accuracy change" not in frame:
        return f"{runs}, none with labels: whether adapting helped is not known."
    known = frame[frame["accuracy change"].notna()]
    sure = known["p_value"] < 0.05
    rose, fell = ((sure & (known["accuracy change"] * sign > 0)).sum() for sign in (1, -1))
    unsure = len(known) - rose - fell
    said = f"{runs}: the accuracy rose in {rose}, fell in {fell}"
    said += f" and did not change beyond chance in {unsure}" if unsure else ""
    said += f"; {len(frame) - len(known)} had no labels" if len(known) < len(frame) else ""
    best = known.sort_values("accuracy change").to_dict("records")[-1]
    points = f"{100 * best['accuracy change']:+.1f} points"
    return f"{said}. The largest change: {points}, {best['run']}."
