"""What a person sees of many domains: not all of them. Right at 80 columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from .terminal import console

if TYPE_CHECKING:
    from adaptkit.pipeline import DomainsRun
    from adaptkit.report.many import DomainRow

EACH_END = 5  # domains shown of those that lost most, and of those that gained most
FAILED_SHOWN = 50
_LONGEST_NAME = 24


def print_domains(run: "DomainsRun") -> None:
    """Print what all domains come to, the worst and the best of them, and all that failed."""
    from adaptkit.report.cells import short
    from adaptkit.report.many import FAILED, ranked

    out, totals, of = console(), run.details["totals"], run.details["of"]
    count, kept = totals["domains"], totals["kept"]
    said = f"Adapted to {totals['adapted']:,} of {count:,} domains, {totals['images']:,} {of}"
    out.print(f"{said}; {kept:,} kept the source's statistics" if kept else said)
    if run.found:
        out.print(f"{run.found:,} were there already, made from the same; --force makes them anew")
    if totals["skipped"]:
        out.print(f"Skipped {totals['skipped']:,} {of} that cannot be read")
    out.print(f"{of.capitalize()}: {run.details['prepared']}")
    for note in run.details["notes"]:
        out.print(f"Note: {note}")
    pooled = run.pooled
    if pooled is not None and pooled.note:
        out.print(f"Note on the pooled result: {pooled.note}")
    rows = ranked(run.rows)
    if rows:
        worst, best = rows, rows[:0]
        if len(rows) > 2 * EACH_END:
            worst, best = rows[:EACH_END], rows[-EACH_END:]
        out.print()
        as_one = [pooled] if pooled is not None and pooled.status != FAILED else []
        out.print(_table(worst, best, as_one, of))
    out.print(f"\n{run.answer}")
    if pooled is not None and pooled.status == FAILED:
        out.print(f"The pooled result failed: {pooled.error}")
    failed = [row for row in run.rows if row.status == FAILED]
    if failed:
        out.print(f"\nFailed, and tried again the next time: {len(failed):,}")
        for row in failed[:FAILED_SHOWN]:
            out.print(f"  {short(row.domain, _LONGEST_NAME)}: {short(row.error, 300)}")
        if len(failed) > FAILED_SHOWN:
            out.print(f"  and {len(failed) - FAILED_SHOWN:,} more, all in the summary")
    out.print("\nWrote")
    packs = count - len(failed)
    out.print(f"  {run.folder}/*.safetensors, {packs:,} in all", soft_wrap=True)
    if pooled is not None and pooled.pack:
        out.print(f"  {run.folder}/{pooled.pack}", soft_wrap=True)
    for path in run.written:
        out.print(f"  {path}", soft_wrap=True)


def _table(
    worst: "Sequence[DomainRow]",
    best: "Sequence[DomainRow]",
    as_one: "Sequence[DomainRow]",
    of: str,
) -> Table:
    """Return a row a domain: its accuracy where any has labels, else the mean confidence."""
    by_labels = worst[0].accuracy_change is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("accuracy, %" if by_labels else "mean confidence, %", no_wrap=True)
    for title in (of, "before", *(["pooled"] if as_one else []), "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("guard", no_wrap=True)
    for row in worst:
        table.add_row(*_cells(row, by_labels, with_pooled=bool(as_one)))
    if best:
        table.add_row("...")
    for row in best:
        table.add_row(*_cells(row, by_labels, with_pooled=bool(as_one)))
    for row in as_one:
        table.add_row("")
        table.add_row("all as one (pooled)", *_cells(row, by_labels, with_pooled=True)[1:])
    return table


def _cells(row: "DomainRow", by_labels: bool, *, with_pooled: bool) -> list[str | Text]:
    from adaptkit.report.cells import short

    before, pooled, after, change = (
        (row.accuracy_before, row.accuracy_pooled, row.accuracy_after, row.accuracy_change)
        if by_labels
        else (
            row.confidence_before,
            row.confidence_pooled,
            row.confidence_after,
            row.confidence_change,
        )
    )
    colour = "" if not by_labels or not change else "green" if change > 0 else "red"
    return [
        short(row.domain, _LONGEST_NAME),
        f"{row.images:,}",
        _percent(before, ".1f"),
        *([_percent(pooled, ".1f")] if with_pooled else []),
        _percent(after, ".1f"),
        Text(_percent(change, "+.1f"), colour),
        row.choice or "",
    ]


def _percent(value: float | None, form: str) -> str:
    return "" if value is None else format(100 * value, form)
