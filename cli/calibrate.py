"""`adaptkit calibrate`: what a checkpoint has to know of its own domain to judge targets by."""

from pathlib import Path
from typing import Any

import click

from . import options


@click.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    required=True,
    metavar="CKPT",
    help="The trained classifier. Never changed.",
)
@click.option(
    "--source-data",
    type=options.place,
    required=True,
    metavar="DIR|URL",
    help="Class folders of the domain it was trained on; best of images that it was not "
    "trained on. At most 1,000 of each class are taken.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The same model with the calibration in it. [default: <source>-calibrated.<suffix> here]",
)
@click.option(
    "--budget",
    "most_bytes",
    callback=options.size,
    metavar="SIZE",
    help="What the calibration may take in the file, such as 2MB. [default: 5% of it, or "
    "1 MiB where that is more]",
)
@options.arch
@options.preparation
@options.reading
@options.force
@options.seed
@options.quiet
def calibrate(quiet: bool, **arguments: Any) -> None:
    """Let a model know its own domain, so that adapting is safer.

    Stores in the checkpoint what its norm layers see of each class, and more. With
    that `adaptkit adapt` corrects the statistics for a target with another mix of
    classes, and is surer when to leave the model alone. What loaded the file
    before loads it still.

    \b
    $ adaptkit calibrate --source net.pt --source-data images/
    $ adaptkit adapt --source net-calibrated.pt --target new-camera/
    """
    from .terminal import print_calibrated, progress

    with progress(quiet=quiet) as report_progress:
        from adaptkit.pipeline import calibrate_checkpoint

        found = calibrate_checkpoint(**arguments, progress=report_progress)
    if not quiet:
        print_calibrated(found)
