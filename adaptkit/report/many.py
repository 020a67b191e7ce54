"""Many domains, each adapted to by itself: a row for each, and what they come to together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from adaptkit.report.cells import encodable, short
from adaptkit.report.page import Page, Section, render

ADAPTED, KEPT, FAILED = "adapted", "kept", "failed"
_LONGEST_NAME = 80  # on a page


@dataclass(frozen=True)
class DomainRow:
    """What became of one domain; None is unknown, never 0.

    Args:
        domain: its name.
        status: "adapted", "kept" (the guard kept the source's statistics) or "failed".
        images: files found.
        skipped: how many of them cannot be read.
        samples: images that the statistics were taken from.
        accuracy_before: 0 to 1, like the next; None without labels.
        accuracy_after: with the statistics of the domain's pack.
        p_value: of the accuracy's change, McNemar's exact.
        confidence_before: mean over images, 0 to 1, like the next.
        confidence_after: with the statistics of the domain's pack.
        choice: the guard's (see `adaptkit.guard.Decision`), None where it was not asked.
        severity: of the shift, classes aside, as the guard saw it.
        largest_error: the largest relative standard error of a layer's statistics.
        seconds: that the domain took.
        pack: the name of its file, "" of a failed domain.
        note: a sentence on its labels, or "".
        error: why it failed, or "".
    """

    domain: str
    status: str
    images: int | None = None
    skipped: int | None = None
    samples: int | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    p_value: float | None = None
    confidence_before: float | None = None
    confidence_after: float | None = None
    choice: str | None = None
    severity: float | None = None
    largest_error: float | None = None
    seconds: float | None = None
    pack: str = ""
    note: str = ""
    error: str = ""

    @property
    def accuracy_change(self) -> float | None:
        """From before to after, −1 to 1."""
        return _change(self.accuracy_before, self.accuracy_after)

    @property
    def confidence_change(self) -> float | None:
        """From before to after, −1 to 1."""
        return _change(self.confidence_before, self.confidence_after)


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def domain_frame(rows: Iterable[DomainRow]) -> pd.DataFrame:
    """Return the rows as a table, whose columns are the fields of `DomainRow`."""
    known = [asdict(row) for row in rows]
    for row in known:
        row |= {k: encodable(v) for k, v in row.items() if isinstance(v, str)}
    frame = pd.DataFrame(known, columns=list(DomainRow.__annotations__))
    numbers = [*_MEANS, "p_value", "severity", "largest_error", "seconds"]
    whole = ("images", "skipped", "samples")
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, "float64"))


_MEANS = ("accuracy_before", "accuracy_after", "confidence_before", "confidence_after")


def totals(rows: Sequence[DomainRow]) -> dict[str, Any]:
    """Return how many domains there are of each status, their images, and means over domains.

    The means are over the domains where the figure is known, each counting alike.

    >>> rows = [DomainRow("a", KEPT, 9, accuracy_before=0.5), DomainRow("b", FAILED)]
    >>> found = totals(rows)
    >>> found["kept"], found["failed"], found["images"], found["accuracy_before"]
    (1, 1, 9, 0.5)
    """
    found: dict[str, Any] = {"domains": len(rows)}
    found |= {s: sum(row.status == s for row in rows) for s in (ADAPTED, KEPT, FAILED)}
    found |= {name: sum(getattr(row, name) or 0 for row in rows) for name in ("images", "skipped")}
    found["labelled"] = sum(row.accuracy_change is not None for row in rows)
    for name in _MEANS:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        found[name] = math.fsum(known) / len(known) if known else None
    found["seconds"] = round(math.fsum(row.seconds or 0 for row in rows), 3)
    return found


def ranked(rows: Iterable[DomainRow]) -> list[DomainRow]:
    """Return the domains whose change is known, from the largest loss to the largest gain.

    The change of the accuracy where any has labels, else that of the mean confidence.

    >>> up = DomainRow("up", ADAPTED, accuracy_before=0.5, accuracy_after=0.75)
    >>> down = DomainRow("down", ADAPTED, accuracy_before=0.5, accuracy_after=0.25)
    >>> [row.domain for row in ranked([up, down, DomainRow("c", FAILED)])]
    ['down', 'up']
    """
    found = list(rows)
    for change in ("accuracy_change", "confidence_change"):
        known = [row for row in found if getattr(row, change) is not None]
        if known:
            return sorted(known, key=lambda row: (getattr(row, change), row.domain))
    return []


def runs_of(rows: Iterable[DomainRow]) -> pd.DataFrame:
    """Return the domains that did not fail as runs, as far as words on several runs need it."""
    found = [row for row in rows if row.status != FAILED]
    frame = pd.DataFrame({"run": [encodable(row.domain) for row in found]})
    if any(row.accuracy_change is not None for row in found):
        frame["accuracy change"] = pd.Series([r.accuracy_change for r in found], dtype="float64")
        frame["p_value"] = pd.Series([r.p_value for r in found], dtype="float64")
    return frame


def page(rows: Sequence[DomainRow], answer: str, command: str) -> str:
    """Return the rows as one self-contained HTML page.

    Args:
        rows: one a domain.
        answer: what they come to, in a sentence or two.
        command: the line that makes them again.
    """
    sections = [
        Section(
            "All domains",
            "A row a domain; a column's name sorts by it. Where a domain has no labels its "
            "accuracy is not known: confidence that rises is a hint, no more.",
            _readable([row for row in rows if row.status != FAILED]),
            signed=[_POINTS],
        )
    ]
    failed = [(short(row.domain, _LONGEST_NAME), row.error) for row in rows if row.status == FAILED]
    if failed:
        why = "They are tried again when the command is given again."
        sections.insert(0, Section("Failed", why, pd.DataFrame(failed, columns=["domain", "why"])))
    return render(Page("Many domains", answer, sections, [command]))


_POINTS = "change, points"


def _readable(rows: Sequence[DomainRow]) -> pd.DataFrame:
    """Return what a person wants of the rows: percentages, and no column that is empty."""
    found = {
        "domain": [short(row.domain, _LONGEST_NAME) for row in rows],
        "images": [row.images for row in rows],
        "accuracy before, %": [_percent(row.accuracy_before) for row in rows],
        "after, %": [_percent(row.accuracy_after) for row in rows],
        _POINTS: [_percent(row.accuracy_change) for row in rows],
        "p": [row.p_value for row in rows],
        "confidence before, %": [_percent(row.confidence_before) for row in rows],
        "then, %": [_percent(row.confidence_after) for row in rows],
        "guard": [row.choice for row in rows],
        "severity": [row.severity for row in rows],
        "note": [row.note or None for row in rows],
    }
    return pd.DataFrame(found).dropna(axis="columns", how="all")


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)
