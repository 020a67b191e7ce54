"""Many domains, each adapted to by itself: a row for each, and what they come to together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from adaptkit.errors import few
from adaptkit.report.cells import encodable, short
from adaptkit.report.page import Page, Section, render

ADAPTED, KEPT, FAILED = "adapted", "kept", "failed"
DOMAIN, POOLED = "domain", "pooled"
_LONGEST_NAME = 80  # on a page


@dataclass(frozen=True)
class DomainRow:
    """What became of one domain, or of all as one; None is unknown, never 0.

    Args:
        domain: its name.
        kind: "domain", or "pooled" of all domains' samples taken as one target.
        status: "adapted", "kept" (the guard kept the source's statistics) or "failed".
        images: files found, or samples of what is no folder.
        skipped: how many of them cannot be read; of "pooled", of those that were drawn.
        samples: images that the statistics were taken from.
        accuracy_before: 0 to 1, like the next; None without labels. Of "pooled" a mean over
            domains, each counting alike, as are all figures like it.
        accuracy_pooled: of a domain, with the statistics of all as one.
        accuracy_after: with the statistics of the row's own pack.
        p_value: of the accuracy's change, McNemar's exact.
        confidence_before: mean over images, 0 to 1, like the next.
        confidence_pooled: of a domain, with the statistics of all as one.
        confidence_after: with the statistics of the row's own pack.
        choice: the guard's (see `adaptkit.guard.Decision`), None where it was not asked.
        severity: of the shift, classes aside, as the guard saw it.
        largest_error: the largest relative standard error of a layer's statistics.
        seconds: that the domain took.
        pack: the name of its file, "" of a failed domain.
        note: a sentence on its labels or on what it leaves out, or "".
        error: why it failed, or "".
    """

    domain: str
    kind: str = field(default=DOMAIN, kw_only=True)
    status: str
    images: int | None = None
    skipped: int | None = None
    samples: int | None = None
    accuracy_before: float | None = None
    accuracy_pooled: float | None = None
    accuracy_after: float | None = None
    p_value: float | None = None
    confidence_before: float | None = None
    confidence_pooled: float | None = None
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


_TIMES = ("before", "pooled", "after")
_MEANS = [f"{name}_{time}" for name in ("accuracy", "confidence") for time in _TIMES]


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
    found |= {name: _mean(getattr(row, name) for row in rows) for name in _MEANS}
    found["seconds"] = round(math.fsum(row.seconds or 0 for row in rows), 3)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def with_figures(pooled: DomainRow, rows: Sequence[DomainRow], listed: Iterable[str]) -> DomainRow:
    """Return the row of all domains as one with what its statistics do to them.

    Args:
        pooled: the row, of which these figures are not known.
        rows: of the domains.
        listed: the names of those whose samples it could be made from.

    >>> a = DomainRow("a", ADAPTED, accuracy_before=0.5, accuracy_pooled=0.6, accuracy_after=0.9)
    >>> b = DomainRow("b", FAILED)
    >>> found = with_figures(DomainRow("pooled", ADAPTED, kind=POOLED), [a, b], ["a"])
    >>> found.accuracy_before, found.accuracy_after, found.note
    (0.5, 0.6, 'Without b, which cannot be opened.')
    """
    figures: dict[str, Any] = {}
    for name in ("accuracy", "confidence"):
        known = [row for row in rows if getattr(row, f"{name}_pooled") is not None]
        for time, column in (("before", "before"), ("after", "pooled")):
            figures[f"{name}_{time}"] = _mean(getattr(row, f"{name}_{column}") for row in known)
    inside = {*listed}
    failed = [row.domain for row in rows if row.status == FAILED]
    without = [name for name in failed if name not in inside]
    among = [name for name in failed if name in inside]
    said = [pooled.note] if pooled.note else []
    said += [f"Without {few(without)}, which cannot be opened."] if without else []
    said += [f"Samples of {few(among)}, which failed, may be among its own."] if among else []
    return replace(pooled, note=" ".join(said), **figures)


def against_pooled(rows: Iterable[DomainRow], pooled: DomainRow | None) -> str:
    """Say what adapting to each domain is worth against adapting to all at once; "" if unknown.

    By the accuracy where any has labels, else by the mean confidence.

    >>> a = DomainRow("a", ADAPTED, accuracy_before=0.5, accuracy_pooled=0.6, accuracy_after=0.9)
    >>> against_pooled([a, DomainRow("b", FAILED)], DomainRow("pooled", ADAPTED, kind=POOLED))
    'Mean accuracy: 50.0% before, 60.0% adapted to all as one (pooled), 90.0% to each by itself, \
which is better in 1 domain and worse in 0.'
    """
    found = list(rows)
    kept = pooled is not None and pooled.status == KEPT
    how = "pooled, where the guard kept the source's statistics" if kept else "pooled"
    for name in ("accuracy", "confidence"):
        values = [tuple(getattr(row, f"{name}_{time}") for time in _TIMES) for row in found]
        known = [(b, p, a) for b, p, a in values if None not in (b, p, a)]
        if known:
            columns = zip(*known, strict=True)
            before, once, after = (f"{100 * math.fsum(v) / len(known):.1f}%" for v in columns)
            better, worse = (sum((a - p) * sign > 0 for _, p, a in known) for sign in (1, -1))
            return (
                f"Mean {name}: {before} before, {once} adapted to all as one ({how}), "
                f"{after} to each by itself, which is better in {better:,} domain"
                f"{'' if better == 1 else 's'} and worse in {worse:,}."
            )
    return ""


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


def page(
    rows: Sequence[DomainRow],
    pooled: DomainRow | None,
    answer: str,
    command: str,
    of: str = "images",
) -> str:
    """Return the rows as one self-contained HTML page.

    Args:
        rows: one a domain.
        pooled: of all as one, where there is such a result.
        answer: what they come to, in a sentence or two.
        command: the line that makes them again.
        of: what the domains are of, "images" or "samples".
    """
    sections = []
    failed = [(short(row.domain, _LONGEST_NAME), row.error) for row in rows if row.status == FAILED]
    if failed:
        why = "They are tried again when the command is given again."
        sections.append(Section("Failed", why, pd.DataFrame(failed, columns=["domain", "why"])))
    if pooled is not None:
        sections.append(_all_as_one(pooled, of))
    sections.append(
        Section(
            "All domains",
            "A row a domain; a column's name sorts by it. Where a domain has no labels its "
            "accuracy is not known: confidence that rises is a hint, no more.",
            _readable([row for row in rows if row.status != FAILED], of),
            signed=[_POINTS],
        )
    )
    return render(Page("Many domains", answer, sections, [command]))


def _all_as_one(pooled: DomainRow, of: str) -> Section:
    title = "All as one (pooled)"
    if pooled.status == FAILED:
        return Section(title, f"It failed, and is tried again the next time: {pooled.error}")
    text = (
        f"The model adapted once, to samples drawn from all domains: what adapting to each by "
        f"itself is to be weighed against. Its statistics are in {pooled.pack}; its figures are "
        f"means over the domains, each counting alike. {pooled.note}"
    )
    return Section(title, text, _readable([replace(pooled, note="")], of), signed=[_POINTS])


_POINTS = "change, points"


def _readable(rows: Sequence[DomainRow], of: str) -> pd.DataFrame:
    """Return what a person wants of the rows: percentages, and no column that is empty."""
    found = {
        "domain": [short(row.domain, _LONGEST_NAME) for row in rows],
        of: [row.images for row in rows],
        "accuracy before, %": [_percent(row.accuracy_before) for row in rows],
        "pooled, %": [_percent(row.accuracy_pooled) for row in rows],
        "after, %": [_percent(row.accuracy_after) for row in rows],
        _POINTS: [_percent(row.accuracy_change) for row in rows],
        "p": [row.p_value for row in rows],
        "confidence before, %": [_percent(row.confidence_before) for row in rows],
        "with pooled, %": [_percent(row.confidence_pooled) for row in rows],
        "then, %": [_percent(row.confidence_after) for row in rows],
        "guard": [row.choice for row in rows],
        "severity": [row.severity for row in rows],
        "note": [row.note or None for row in rows],
    }
    return pd.DataFrame(found).dropna(axis="columns", how="all")


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)
