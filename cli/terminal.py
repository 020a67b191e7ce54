"""What a person sees: progress while a command runs, then a table. Right at 80 columns."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from adaptkit.demo import Demo
    from adaptkit.pipeline import Run
    from adaptkit.report import Report, Row

SKIPPED_SHOWN = 5
_STAGES = {
    "before": "Scoring the source model",
    "reading": "Reading images",
    "estimating": "Estimating, layers",
    "streaming": "Estimating, images",
    "after": "Scoring the adapted model",
    "training": "Training the source model, epochs",
}


def console() -> Console:
    """Return a console on stdout that leaves file names and numbers as they are."""
    return Console(highlight=False, markup=False, emoji=False)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Show a bar for each stage on stderr where that is a terminal; else give None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, object] = {}

        def advance(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield advance


def print_run(run: "Run") -> None:
    """Print what a run did: how, the table, what was left out, and what was written."""
    out = console()
    statistics = run.statistics
    chosen = f"{statistics.samples:,} of {run.images:,} images"
    out.print(f"Adapted {len(statistics)} norm layers on {chosen}")
    for note in run.notes:
        out.print(f"Note: {note}")
    errors = [e for e in statistics.errors().values() if e < float("inf")]
    if errors:
        out.print(f"Largest standard error of a layer's statistics: {max(errors):.1%}")
    certificate = run.report.row("certificate")
    if certificate is not None and certificate.after is not None:
        out.print(
            f"Certificate, largest error against what the model sees: {certificate.after:.1e}"
        )
    out.print()
    out.print(comparison(run.report))
    out.print(verdict(run.report))
    if run.skipped:
        out.print(f"\nSkipped {len(run.skipped):,} that cannot be read:")
        for path, reason in list(run.skipped.items())[:SKIPPED_SHOWN]:
            out.print(f"  {path}: {reason}", soft_wrap=True)
        if len(run.skipped) > SKIPPED_SHOWN:
            out.print(f"  and {len(run.skipped) - SKIPPED_SHOWN:,} more, all named in the JSON")
    files = (run.outputs.checkpoint, run.outputs.csv, run.outputs.json)
    out.print(f"\nWrote {', '.join(map(str, files))}", soft_wrap=True)


def comparison(report: "Report") -> Table:
    """Return the whole-set figures of a report, each with the 95% interval of its change."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("before", "after", "change", "95% interval", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, metric, scale, unit, digits in (
        ("accuracy, %", "accuracy", 100, "", 1),
        ("mean confidence, %", "confidence_mean", 100, "", 1),
        ("mean entropy, nats", "entropy_mean", 1, "", 3),
        ("symmetric KL, nats", "symmetric_kl", 1, "", 3),
    ):
        row = report.row(metric)
        if row is not None and row.before is not None:
            table.add_row(name, *_cells(row, scale, unit, digits))
        if metric == "accuracy":
            intervals = report.details.get("accuracy_interval", {})
            own = [_interval(intervals.get(when)) for when in ("before", "after")]
            if all(own):
                table.add_row("  its 95% interval", *own)
    return table


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0] * 100:.1f}-{bounds[1] * 100:.1f}"


def _cells(row: "Row", scale: float, unit: str, digits: int) -> list[str | Text]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value * scale:{sign}.{digits}f}{unit}"

    interval = ""
    if row.ci_low is not None:
        interval = f"{number(row.ci_low, '+')} to {number(row.ci_high, '+')}"
    change = Text(number(row.change, "+"))
    if row.metric == "accuracy" and row.change and row.p_value is not None and row.p_value < 0.05:
        change.stylize("green" if row.change > 0 else "red")
    return [number(row.before), number(row.after), change, interval, _p_value(row.p_value)]


def _p_value(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(report: "Report") -> str:
    """Say in a sentence or two what the figures mean, and what they cannot say."""
    accuracy = report.row("accuracy")
    if accuracy is None or accuracy.change is None or accuracy.p_value is None:
        return (
            "\nNo labels, so the accuracy is not known. Confidence that rises and entropy that\n"
            "falls mostly go with a gain, but not always: score a few labelled images."
        )
    points = f"{abs(accuracy.change) * 100:.1f} points"
    if accuracy.p_value >= 0.05:
        said = f"The accuracy did not change beyond chance (n = {accuracy.n:,})."
    elif accuracy.change > 0:
        said = f"The accuracy rose by {points} (n = {accuracy.n:,})."
    else:
        said = f"The accuracy fell by {points} (n = {accuracy.n:,}): keep the source model."
    return f"\n{said}\nThe scored images include those that were adapted to (without their labels)."


def print_demo(demo: "Demo") -> None:
    """Print the demo's table of shifts and the line that repeats its main run."""
    from adaptkit.demo import SHIFTS, TRAINED_ON

    out = console()
    main = demo.runs["target"]
    out.print(
        f"The images are real: scikit-learn's 1,797 handwritten digits. The net was\n"
        f"trained on {TRAINED_ON} of them here, the other {main.images} are the target. "
        f"The shifts are\nsynthetic.\n"
    )
    out.print(f"$ {demo.command}", soft_wrap=True)
    print_run(main)
    out.print("\nThe same for other shifts, those included where AdaBN does not help:\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("target")
    for title in ("before, %", "after, %", "change", "95% interval", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, run in demo.runs.items():
        row = run.report.row("accuracy")
        if row is not None:
            table.add_row(SHIFTS[name].title, *_cells(row, 100, "", 1))
    out.print(table)
    unlabelled = demo.folder / "target-unlabelled"
    out.print(f"\nWithout labels, try: --target {unlabelled}", soft_wrap=True)
