"""What a person sees: progress while a command runs, then a table. Right at 80 columns."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from adaptkit.errors import shown

if TYPE_CHECKING:
    import pandas as pd

    from adaptkit.demo import Demo
    from adaptkit.pipeline import Calibrated, Inspection, Run, ShiftRun
    from adaptkit.pipeline.inspect import NormLayer
    from adaptkit.report import Report, Row

SKIPPED_SHOWN = 5
LAYERS_SHOWN = 12
_ROUNDING = 0.001  # of float16, in standard deviations
CLASSES_SHOWN = 10
_LAYER_METRICS = ("symmetric_kl", "mean_shift", "log_var_shift")
_STAGES = {
    "before": "Scoring the source model",
    "reading": "Reading samples",
    "measuring": "Measuring classes, samples",
    "calibrating": "Calibrating, samples",
    "estimating": "Estimating, layers",
    "streaming": "Estimating, samples",
    "after": "Scoring the adapted model",
    "listing": "Listing, domains",
    "domains": "Adapting, domains",
    "features": "Taking features, samples",
    "training": "Training the source model, epochs",
}


def console() -> Console:
    """Return a console on stdout that leaves file names and numbers as they are."""
    return Console(highlight=False, markup=False, emoji=False)


class _Rate(ProgressColumn):
    """How many images, layers or epochs a second."""

    def render(self, task: Task) -> Text:
        """Return the rate over the last half minute, or of all once the stage is done."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Show a bar for each stage on stderr where that is a terminal; else give None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description:<33}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
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
    from adaptkit.report.answer import outcome
    from adaptkit.report.guarded import domain_words, fit_words, keeps_statistics
    from adaptkit.report.wording import of_what, told

    out = console()
    statistics, of = run.statistics, of_what(run.report.details)
    restyled = run.report.details["method"] == "adain"
    domains = run.report.details.get("domains")
    if domains:
        for line in domain_words(domains):
            out.print(told(line, of))
    elif statistics is None or restyled:
        out.print(f"Restyled {run.images:,} images to the source's, one by one (AdaIN)")
    elif keeps_statistics(run.report):
        out.print(f"Kept the source's statistics, looking at {statistics.samples:,} {of}")
    else:
        chosen = f"{statistics.samples:,} of {run.images:,} {of}"
        layers = "1 norm layer" if len(statistics) == 1 else f"{len(statistics)} norm layers"
        out.print(f"Adapted {layers} on {chosen}")
    out.print(f"{of.capitalize()}: {run.report.details['prepared']}")
    if run.report.details["processes"] > 1:
        out.print(f"Processes: {run.report.details['processes']:,}")
    for note in run.notes:
        out.print(f"Note: {note}")
    if run.report.details.get("input_fit"):
        out.print(fit_words(run.report.details["input_fit"]))
    _print_guard(out, run.report)
    errors = [] if statistics is None else statistics.errors().values()
    errors = [e for e in errors if e < float("inf")]
    if errors and not restyled and not keeps_statistics(run.report):
        out.print(f"Largest standard error of a layer's statistics: {max(errors):.1%}")
    certificate = run.report.row("certificate")
    if certificate is not None and certificate.after is not None:
        out.print(
            f"Certificate, largest error against what the model sees: {certificate.after:.1e}"
        )
    out.print()
    out.print(comparison(run.report))
    _print_domains(out, run.report)
    out.print()
    for sentence in outcome(run.report):
        out.print(told(sentence, of))
    _print_skipped(out, run.skipped)
    _print_written(out, run.written)


def _print_guard(out: Console, report: "Report") -> None:
    """Print what the guard chose, why, and by which figures."""
    from adaptkit.report.guarded import guard_table, guard_words, mix_words
    from adaptkit.report.wording import of_what, told

    guard, of = report.details.get("guard"), of_what(report.details)
    if not guard:
        return
    for sentence in guard_words(guard):
        out.print(told(sentence, of))
    for name, figure in guard_table(guard, of).itertuples(index=False):
        out.print(f"  {name}: {figure}")
    if guard["class_shares"]:
        known = "given" if guard["shares_given"] else "estimated"
        out.print(f"  mix of classes, {known}: {mix_words(guard['class_shares'])}")


def print_calibrated(found: "Calibrated") -> None:
    """Print what a checkpoint now knows of its own domain, and at what cost."""
    from adaptkit.report.wording import told

    out = console()
    known = found.calibration
    layers = len(known.moments.mean)
    out.print(
        f"Calibrated {layers} norm layers for {known.classes} classes on {found.images:,} "
        f"{found.of}"
    )
    out.print(
        f"Accuracy there {known.accuracy:.1%}, mean confidence {known.confidence:.1%}; severity "
        f"up to {known.typicality[-1]:.2f} is typical"
    )
    maps = known.maps
    if maps is not None and maps.tell:
        said = "Mean images tell the classes apart: a target's mix of classes shows in its own"
    else:
        said = "Mean images do not tell the classes apart: predictions tell the mix of classes"
    out.print(told(said, found.of))
    taken = f"Takes {found.bytes / 1024:,.0f} KiB, {found.share:.1%} of the file"
    exact = known.error < _ROUNDING
    out.print(taken if exact else f"{taken}; packed to fit, with an error of {known.error:.3f} sd")
    _print_skipped(out, found.skipped)
    _print_written(out, found.written)


def print_runs(found: "pd.DataFrame") -> None:
    """Print a row a run: accuracy before and after, and the entropy, which needs no labels."""
    from adaptkit.pipeline.runs import answer, in_text, readable
    from adaptkit.report.cells import written

    shown = in_text(readable(found))
    labelled = "accuracy before, %" in shown
    titles = {"run": "run", **(_LABELLED_RUNS if labelled else _UNLABELLED_RUNS)}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles.values():
        name = title == "run"
        table.add_column(
            title,
            justify="left" if name else "right",
            no_wrap=not name,
            overflow="fold",
            min_width=20 if name else None,
        )
    for row in shown.to_dict("records"):
        table.add_row(*(written(row.get(name)) for name in titles))
    out = console()
    out.print(table)
    out.print(f"\n{answer(found)}")


_LABELLED_RUNS = {
    "accuracy before, %": "before, %",
    "after, %": "after, %",
    "change, points": "change",
    "95% interval": "95% interval",
    "p": "p",
}
_UNLABELLED_RUNS = {"entropy before, nats": "entropy before, nats", "after, nats": "after, nats"}


def print_shift(run: "ShiftRun") -> None:
    """Print how far a domain lies away, and where that shows."""
    from adaptkit.report.wording import of_what

    out = console()
    out.print(f"{of_what(run.report.details).capitalize()}: {run.report.details['prepared']}")
    for note in run.notes:
        out.print(f"Note: {note}")
    out.print(run.verdict)
    layers = _table("layer")
    for title in ("symmetric KL, nats", "means, sd", "log-variances"):
        layers.add_column(title, justify="right", no_wrap=True)
    scopes = [r.scope for r in run.report.rows if r.metric == "symmetric_kl"]
    for scope in scopes[: LAYERS_SHOWN + 1]:
        found = [run.report.row(metric, scope) for metric in _LAYER_METRICS]
        name = "mean of all" if scope == "all" else scope.removeprefix("layer:")
        layers.add_row(name, *(f"{row.before:.3f}" if row else "" for row in found))
    out.print()
    out.print(layers)
    if len(scopes) > LAYERS_SHOWN + 1:
        out.print(f"and {len(scopes) - LAYERS_SHOWN - 1:,} more layers, all in the CSV")
    _print_domains(out, run.report)
    _print_skipped(out, run.skipped)
    _print_written(out, (run.csv, run.json))


def _calibration_of(known: "Mapping[str, Any] | None") -> str:
    if known is None:
        return ""
    return (
        f"for {known['classes']} classes, accuracy {known['accuracy']:.1%}, confidence "
        f"{known['confidence']:.1%}"
    )


def print_inspection(found: "Inspection") -> None:
    """Print what a checkpoint is, then its norm layers."""
    from adaptkit.pipeline.inspect import REMARKS

    out = console()
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.tensors.items())
    arguments = ", ".join(f"{k}={v}" for k, v in found.arch_kwargs.items())
    facts = {
        "architecture": found.arch + (f" ({arguments})" if arguments else ""),
        "parameters": f"{found.parameters:,}",
        "file": f"{found.kind}, {found.bytes / 2**20:,.1f} MiB, tensors: {dtypes}",
        "state dict": f"under {found.state_dict}" if found.state_dict else "",
        "classes": _names_of(found.classes),
        "images": found.preparation,
        "adapted": ", ".join(f"{k} {v}" for k, v in (found.adapted or {}).items()),
        "calibrated": _calibration_of(found.calibration),
        "SHA-256": found.sha256,
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text(value, overflow="fold"))
    out.print(grid)
    for note in found.notes:
        out.print(f"Note: {note}")
    if not found.layers:
        out.print("\nThe model has no normalisation layer, so there is nothing to adapt.")
        return
    rows = [_cells_of(layer) for layer in found.layers]
    same = [title for title in rows[0] if len(rows) > 1 and len({row[title] for row in rows}) == 1]
    table = _table("norm layer")
    for title in rows[0]:
        if title not in same:
            right = title in ("channels", "eps", "momentum")
            table.add_column(title, justify="right" if right else "left", overflow="fold")
    for layer, row in zip(found.layers, rows, strict=True):
        table.add_row(layer.name, *(cell for title, cell in row.items() if title not in same))
    out.print()
    if same:
        out.print(f"All norm layers: {', '.join(f'{t} {rows[0][t]}' for t in same if rows[0][t])}")
    out.print(table)
    for why, kinds in _reasons(found).items():
        out.print(f"Not adaptable: {', '.join(kinds)}, which {why}.")
    for word, meaning in REMARKS.items():
        if any(word in layer.remark for layer in found.layers):
            out.print(f"{word}: {meaning}.")
    counted = f"{len(found.adaptable)} of {len(found.layers)} norm layers can be adapted"
    out.print(f"\n{counted}{'.' if found.adaptable else ': AdaBN has nothing to do.'}")


def _cells_of(layer: "NormLayer") -> dict[str, str]:
    return {
        "kind": layer.kind,
        "channels": "" if layer.channels is None else str(layer.channels),
        "eps": "" if layer.eps is None else f"{layer.eps:g}",
        "momentum": "" if layer.momentum is None else f"{layer.momentum:g}",
        "adaptable": "yes" if layer.adaptable else "no",
        "statistics": layer.remark or ("sane" if layer.adaptable else "none"),
    }


def _names_of(classes: Sequence[str] | None) -> str:
    if classes is None:
        return "not named"
    more = len(classes) - CLASSES_SHOWN
    return ", ".join(classes[:CLASSES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _reasons(found: "Inspection") -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for layer in found.layers:
        kinds = reasons.setdefault(layer.why_not, []) if layer.why_not else []
        if layer.kind not in kinds:
            kinds.append(layer.kind)
    return reasons


def _print_domains(out: Console, report: "Report") -> None:
    """Print what source data adds: images, features before and after, and estimates."""
    from adaptkit.report import IMAGES
    from adaptkit.report.answer import METRICS, feature_table, p_value

    shifts = [r for r in report.rows if r.metric == "input_shift" and r.before is not None]
    if shifts:
        moved = ", ".join(f"{r.scope.rpartition('.')[2]} {r.before:+.2f}" for r in shifts[:3])
        out.print(f"\nThe images against the source's, in its standard deviations: {moved}")
    alike = report.row("mmd2_p", IMAGES)
    if alike is not None and alike.before is not None:
        out.print(f"Distributed as the source's, by MMD²: p = {p_value(alike.before)}")
    distances = feature_table(report)
    if len(distances):
        scope = next(r.scope for r in report.rows if r.metric in METRICS and r.scope != IMAGES)
        table = _table(f"{scope.removeprefix('feature:')} features against source")
        for title in distances.columns[1:]:
            table.add_column(title, justify="right", no_wrap=True)
        for cells in distances.itertuples(index=False):
            table.add_row(*cells)
        out.print()
        out.print(table)
    estimated = [(name, report.row(f"accuracy_{name.lower()}")) for name in ("ATC", "DoC")]
    said = [
        f"{row.before:.1%} -> {row.after:.1%} ({name})"
        for name, row in estimated
        if row and row.before is not None and row.after is not None
    ]
    if said:
        out.print(
            f"\nAccuracy, estimated without the target's labels: {', '.join(said)}.\n"
            f"Under a strong shift such estimates can be far too high."
        )


def _print_written(out: Console, files: Sequence[Path]) -> None:
    out.print("\nWrote")
    for path in files:
        out.print(f"  {path}", soft_wrap=True)


def _print_skipped(out: Console, skipped: Mapping[str, str]) -> None:
    if not skipped:
        return
    out.print(f"\nSkipped {len(skipped):,} that cannot be read:")
    for path, reason in list(skipped.items())[:SKIPPED_SHOWN]:
        out.print(f"  {shown(path)}: {shown(reason)}", soft_wrap=True)
    if len(skipped) > SKIPPED_SHOWN:
        out.print(f"  and {len(skipped) - SKIPPED_SHOWN:,} more, all named in the JSON")


def _table(title: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title)
    return table


def comparison(report: "Report") -> Table:
    """Return the whole-set figures of a report, each with the 95% interval of its change."""
    from adaptkit.report.answer import figures_table

    table = _table("")
    for title in ("before", "after", "change", "95% interval", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    accuracy = report.row("accuracy")
    for number, (name, before, after, change, *rest) in enumerate(
        figures_table(report).itertuples(index=False)
    ):
        shown = Text(change)
        if accuracy and number == 0:
            shown.stylize(_colour(accuracy))
        table.add_row(name, before, after, shown, *rest)
    return table


def _colour(row: "Row") -> str:
    """Green for a rise beyond chance, red for such a fall."""
    from adaptkit.report.answer import SURE

    if not row.change or row.p_value is None or row.p_value >= SURE:
        return ""
    return "green" if row.change > 0 else "red"


def print_demo(demo: "Demo") -> None:
    """Print the demo's table of shifts and the line that repeats its main run."""
    from adaptkit.demo import SHIFTS, TRAINED_ON
    from adaptkit.report.answer import change_cells

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
            before, after, change, *rest = change_cells(row)
            table.add_row(SHIFTS[name].title, before, after, Text(change, _colour(row)), *rest)
    out.print(table)
    unlabelled = demo.folder / "target-unlabelled"
    out.print(f"\nWithout labels, try: --target {unlabelled}", soft_wrap=True)
