"""The page of one run: the answer first, then a picture for each question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import pandas as pd

from adaptkit.report.answer import (
    COLUMNS,
    decision,
    feature_table,
    figures_table,
    headline,
    image_table,
    outcome,
)
from adaptkit.report.cells import encodable, short
from adaptkit.report.guarded import guard_table, mix_words
from adaptkit.report.page.page import Page, Section
from adaptkit.report.table import Report
from adaptkit.report.wording import chart_told, of_what, told

_NOTES = "To note"
# Title of a section -> the charts in it.
_QUESTIONS = {
    "Class by class": ("recall", "confusion", "shares"),
    "Confidence": ("reliability", "confidence", "entropy"),
    "What the norm layers see": ("layers", "channels", "precision"),
    "In the model's features": ("projection",),
}


def run_page(report: Report) -> Page:
    """Return the page of a report: of a run, or of two evaluations that were compared."""
    details = report.details
    of = of_what(details)
    return Page(
        title=_title(details),
        answer=told(headline(report), of),
        decision=told(decision(report), of) if "method" in details else "",
        sections=[_told(section, of) for section in _sections(report)],
        repeat=[*_repeat(details)],
    )


def _told(section: Section, of: str) -> Section:
    """Return a section on what a report is of; what users wrote stays as it is."""
    ours = section.title != _NOTES
    return replace(
        section,
        title=told(section.title, of),
        text=told(section.text, of),
        charts=[chart_told(chart, of) for chart in section.charts],
        items=[told(item, of) if ours else item for item in section.items],
    )


def _title(details: Mapping[str, Any]) -> str:
    arguments = details.get("arguments") or {}
    source, target = arguments.get("source"), arguments.get("target")
    if not source or not target:
        return "Before and after"
    names = (short(PurePath(str(path)).name or str(path), 80) for path in (source, target))
    return ", adapted to ".join(names)


def _sections(report: Report) -> Iterator[Section]:
    details = report.details
    if _unlabelled(report):
        yield Section("Without labels", items=[*_knowable(report)])
    yield Section(
        "Before and after",
        " ".join(outcome(report)) if "method" in details else "",
        figures_table(report),
        right=COLUMNS[1:],
    )
    if details.get("guard"):
        table = guard_table(details["guard"], of_what(details))
        shares = details["guard"].get("class_shares")
        known = "given" if details["guard"].get("shares_given") else "estimated"
        text = f"Mix of classes, {known}: {mix_words(shares)}." if shares else ""
        yield Section("What the guard went by", text, table, right=["figure"])
    if details.get("notes"):
        yield Section(_NOTES, items=[str(note) for note in details["notes"]])
    charts = {chart.name: chart for chart in report.charts}
    for title, names in _QUESTIONS.items():
        found = [charts[name] for name in names if name in charts]
        text = str(details.get("verdict") or "") if "layers" in names else ""
        distances = feature_table(report) if "projection" in names else pd.DataFrame()
        if found or len(distances):
            yield Section(title, text, distances, right=list(distances.columns[1:]), charts=found)
    moved = image_table(report)
    if len(moved):
        text = "How far the images themselves lie from the source's, in its standard deviations."
        yield Section("In the images", text, moved, right=list(moved.columns[1:]))
    if report.pictures:
        yield Section(
            "Images whose prediction changed", _of_pictures(report), pictures=report.pictures
        )
    skipped = details.get("skipped") or {}
    if skipped:
        words = [(encodable(name), encodable(str(why))) for name, why in skipped.items()]
        table = pd.DataFrame(words, columns=["file", "why"])
        yield Section(f"{len(skipped):,} files were skipped", "They could not be read.", table)


def _unlabelled(report: Report) -> bool:
    return "method" in report.details and not any(
        report.row(metric) for metric in ("accuracy", "pixel_accuracy")
    )


def _knowable(report: Report) -> Iterator[str]:
    """Yield what cannot be known without labels, and what of the page shows what can."""
    charts = {chart.name for chart in report.charts}
    yield (
        "Cannot be known: whether the accuracy rose or fell. No figure on this page takes the "
        "place of labels: score both models on a few labelled images."
    )
    arguments = report.details.get("arguments") or {}
    if report.details["method"] == "adabn" and arguments.get("class_shares") in (None, "auto"):
        shares = " The shares of the predictions below are what there is to judge it by."
        yield (
            "Cannot be known: whether the mix of classes is the source's, as AdaBN assumes."
            f"{shares if 'shares' in charts else ''}"
        )
    seen = {
        "layers": "how far the domain moved for each layer and what of that adapting took back",
        "confidence": "how sure the model became",
        "confusion": "which predictions changed",
    }
    found = [words for name, words in seen.items() if name in charts]
    if found:
        yield f"Can be seen: {'; '.join(found)}."


def _of_pictures(report: Report) -> str:
    if _unlabelled(report):
        return (
            "Best: where the model became surer. Worst: where it became less sure. Which "
            "prediction is right, you can see for yourself."
        )
    return "Best: wrong before and right after. Worst: right before and wrong after."


def _repeat(details: Mapping[str, Any]) -> Sequence[str]:
    if "command" not in details:
        return ()
    checkpoint = details.get("checkpoint") or {}
    versions = details.get("versions") or {}
    return (
        str(details["command"]),
        "",
        f"# source SHA-256 {checkpoint.get('sha256')}",
        f"# architecture {checkpoint.get('arch')}",
        f"# {of_what(details)} {details.get('prepared')}",
        f"# seed {details.get('seed')}, device {details.get('device')}",
        "# " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    )
