"""`adaptkit report`: the reports of several runs side by side."""

from pathlib import Path
from typing import Any

import click

from . import options


@click.command()
@click.argument(
    "reports",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="REPORT.csv...",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "md", "html"]),
    default="table",
    show_default=True,
    help="table: for the terminal. html: one page that opens from disk.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write it there. [default: print it; html: runs.html here]",
)
@options.force
@options.quiet
def report(
    reports: tuple[Path, ...], form: Any, out: Path | None, force: bool, quiet: bool
) -> None:
    """Compare runs: several domains, methods or seeds in one table.

    Takes the CSV files that `adaptkit adapt` wrote, and what the JSON beside each
    says of its run.

    \b
    $ adaptkit report night.csv rain.csv
    $ adaptkit report *.csv --format html
    """
    from adaptkit.files import check_outputs, write_files
    from adaptkit.pipeline import as_text, compare_reports

    if form == "html":
        out = out or Path("runs.html")
    if out is not None:
        check_outputs([out], inputs=reports, force=force)
    found = compare_reports(reports)
    if form == "table":
        if out is not None:
            raise click.UsageError("--out needs --format csv, md or html")
        from .terminal import print_runs

        print_runs(found)
        return
    text = as_text(found, form, reports)
    if out is None:
        click.echo(text, nl=False)
        return
    write_files({out: text.encode()})
    if not quiet:
        click.echo(f"Wrote {out}")
