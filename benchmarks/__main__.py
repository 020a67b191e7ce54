"""`python -m benchmarks NAME [--quick] [--out DIR]`."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pandas as pd

from adaptkit import AdaptkitError
from benchmarks import (
    corruptions,
    cost,
    exactness,
    label_shift,
    memory,
    mixtures,
    norm_tables,
    norms,
    precision,
    profile,
    scaling,
    target_size,
    throughput,
    transfer,
)

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
    "mixtures": Benchmark(mixtures.run, mixtures.figure),
    "exactness": Benchmark(exactness.run, exactness.figure),
    "target-size": Benchmark(target_size.run, target_size.figure),
    "cost": Benchmark(cost.run, cost.figure),
    "throughput": Benchmark(throughput.run, throughput.figure),
    "warm": Benchmark(throughput.run_warm, throughput.figure),
    "memory": Benchmark(memory.run, memory.figure),
    "profile": Benchmark(profile.run, profile.figure),
    "scaling": Benchmark(scaling.run, scaling.figure),
    "precision": Benchmark(precision.run, precision.figure),
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        for each in BENCHMARKS if name == ALL else [name]:
            if name == ALL:
                click.echo(f"\n{each}\n")
            _run(each, quick, out)
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror}") from None
    except AdaptkitError as error:
        raise click.ClickException(str(error)) from None


def _run(name: str, quick: bool, out: Path) -> None:
    benchmark = BENCHMARKS[name]
    frame, summary = benchmark.run(quick)
    path = out / f"{name}.csv"
    command = shlex.join(["python", "-m", "benchmarks", name, *(["--quick"] if quick else [])])
    frame.assign(command=command).to_csv(path, index=False, lineterminator="\n")
    click.echo(summary.to_string(index=False))
    click.echo(f"\nWrote {path}")
    benchmark.figure(frame).savefig(path.with_suffix(".png"), dpi=100)
    click.echo(f"Wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    main(sys.argv[1:], prog_name="python -m benchmarks")
