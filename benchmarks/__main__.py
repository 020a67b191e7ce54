"""`python -m benchmarks NAME [--quick] [--out DIR]`."""

from pathlib import Path

import click

from benchmarks import memory, precision, profile, throughput

NAMES = {
    "throughput": throughput.run,
    "warm": throughput.run_warm,
    "precision": precision.run,
    "memory": memory.run,
    "profile": profile.run,
}


@click.command()
@click.argument("name", type=click.Choice(sorted(NAMES)))
@click.option("--quick", is_flag=True, help="Fewer images and repeats, to see that it works.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Where the CSV goes.",
)
def main(name: str, quick: bool, out: Path) -> None:
    """Run a benchmark, print its table and write it as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    frame, summary = NAMES[name](quick)
    path = out / f"{name}.csv"
    frame.to_csv(path, index=False, lineterminator="\n")
    click.echo(summary.to_string(index=False))
    click.echo(f"\nWrote {path}")


main(prog_name="python -m benchmarks")
