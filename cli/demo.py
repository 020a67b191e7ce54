"""`adaptkit demo`: the main job on data that is embedded, from training to report."""

from pathlib import Path

import click

from . import options


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="adaptkit-demo",
    show_default=True,
    metavar="DIR",
    help="Where the demo puts its files.",
)
@options.seed
@options.quiet
def demo(out: Path, seed: int, quiet: bool) -> None:
    """Adapt a small model to real digits seen through a poor camera.

    Takes the 1,797 digits that ship inside scikit-learn, trains a small BatchNorm
    net on half of them, changes the other half, and adapts to it. Nothing is
    downloaded.
    """
    from .terminal import print_demo, progress

    with progress(quiet=quiet) as report_progress:
        from adaptkit.demo import run_demo

        found = run_demo(out, seed=seed, progress=report_progress)
    if not quiet:
        print_demo(found)
