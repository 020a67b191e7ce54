"""`python -m benchmarks NAME [--quick] [--out DIR]`."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pandas as pd

from adaptkit import DependencyError
from benchmarks import (
    corruptions,
    cost,
    decode,
    domains,
    exactness,
    forecast,
    guard,
    label_shift,
    memory,
    mixtures,
    norm_tables,
    norms,
    precision,
    profile,
    scaling,
    startup,
    target_size,
    throughput,
    transfer,
)
from benchmarks.images import MissingDataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Benchmark(NamedTuple):
    """Runs, quickly or in full, and returns its rows and a summary; draws a figure of the rows."""

    run: Callable[[bool], tuple[pd.DataFrame, pd.DataFrame]]
    figure: Callable[[pd.DataFrame], "Figure"]


BENCHMARKS = {
    "transfer": Benchmark(transfer.run, transfer.figure),
    "corruptions": Benchmark(corruptions.run, corruptions.figure),
    "label-shift": Benchmark(label_shift.run, label_shift.figure),
    "guard": Benchmark(guard.run, guard.figure),
    "forecast": Benchmark(forecast.run, forecast.figure),
    "mixtures": Benchmark(mixtures.run, mixtures.figure),
    "exactness": Benchmark(exactness.run, exactness.figure),
    "target-size": Benchmark(target_size.run, target_size.figure),
    "cost": Benchmark(cost.run, cost.figure),
    "decode": Benchmark(decode.run, decode.figure),
    "throughput": Benchmark(throughput.run, throughput.figure),
    "warm": Benchmark(throughput.run_warm, throughput.figure),
    "memory": Benchmark(memory.run, memory.figure),
    "profile": Benchmark(profile.run, profile.figure),
    "domains": Benchmark(domains.run, domains.figure),
    "scaling": Benchmark(scaling.run, scaling.figure),
    "precision": Benchmark(precision.run, precision.figure),
    "startup": Benchmark(startup.run, startup.figure),
    "norms": Benchmark(norms.run, norm_tables.figure),
}
ALL = "all"


@click.command()
@click.argument("name", type=click.Choice([*BENCHMARKS, ALL]))
@click.option("--quick", is_flag=True, help="Fewer images and repeats, to see that it works.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Where the CSV goes, and a figure.",
)
def main(name: str, quick: bool, out: Path) -> None:
    """Run a benchmark, print its table, and write its rows as CSV and a figure of them."""
    for each in BENCHMARKS if name == ALL else [name]:
        if name == ALL:
            click.echo(f"\n{each}\n")
        _run(each, quick, out)


def _run(name: str, quick: bool, out: Path) -> None:
    benchmark = BENCHMARKS[name]
    path = out / f"{name}.csv"
    command = shlex.join(["python", "-m", "benchmarks", name, *(["--quick"] if quick else [])])
    with _written_to(out):  # before hours of work, not after
        out.mkdir(parents=True, exist_ok=True)
    try:
        frame, summary = benchmark.run(quick)
    except MissingDataError as error:
        click.echo(f"skipped {name}: {error}", err=True)
        return
    try:
        drawn = benchmark.figure(frame)
    except DependencyError as error:
        click.echo(f"no figure of {name}: {error}", err=True)
        drawn = None
    with _written_to(out):
        rows = frame.assign(command=command)
        rows.to_csv(path, index=False, lineterminator="\n", float_format="%.6g")
        click.echo(summary.to_string(index=False))
        click.echo(f"\nWrote {path}")
        if drawn is not None:
            drawn.savefig(path.with_suffix(".png"), dpi=100)
            click.echo(f"Wrote {path.with_suffix('.png')}")


@contextmanager
def _written_to(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:], prog_name="python -m benchmarks")
