"""`python -m benchmarks NAME [--quick] [--out DIR]`."""

from pathlib import Path

import click

from adaptkit import AdaptkitError
from benchmarks import memory, norm_tables, norms, precision, profile, throughput

NAMES = {
    "throughput": throughput.run,
    "warm": throughput.run_warm,
    "precision": precision.run,
    "memory": memory.run,
    "norms": norms.run,
    "profile": profile.run,
}
FIGURES = {"norms": norm_tables.figure}


@click.command()
@click.argument("name", type=click.Choice(sorted(NAMES)))
@click.option("--quick", is_flag=True, help="Fewer images and repeats, to see that it works.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Where the CSV goes, and a figure where there is one.",
)
def main(name: str, quick: bool, out: Path) -> None:
    """Run a benchmark, print its table and write its rows as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    frame, summary = NAMES[name](quick)
    path = out / f"{name}.csv"
    frame.to_csv(path, index=False, lineterminator="\n")
    click.echo(summary.to_string(index=False))
    click.echo(f"\nWrote {path}")
    if name in FIGURES:
        try:
            FIGURES[name](frame).savefig(path.with_suffix(".png"), dpi=100)
        except AdaptkitError as error:
            raise click.ClickException(str(error)) from None
        click.echo(f"Wrote {path.with_suffix('.png')}")


main(prog_name="python -m benchmarks")
