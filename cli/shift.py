"""`adaptkit shift`: how far a folder of images lies from what a model was trained on."""

from pathlib import Path
from typing import Any

import click

from . import options
from .job import in_job


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    metavar="CKPT",
    help="The trained model: .pt, .pth, .ckpt, .safetensors, .pt2 and others. Never changed.",
)
@click.option(
    "--target",
    type=options.place,
    required=True,
    metavar="DIR|URL",
    help="Images of the new domain, here or at a URL. Their labels are not used.",
)
@options.source_data
@click.option(
    "--layer",
    metavar="NAME",
    help="Whose features are compared with the source data's. [default: the pooled "
    "ones, before the last linear layer]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    metavar="N",
    help="Images of each domain at most, drawn at random. Time grows with the square.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="PATH.csv",
    help="The figures; a .json lies beside. [default: <model>-shift.csv here]",
)
@options.arch
@options.preparation
@options.reading
@options.dist_timeout
@options.force
@options.seed
@options.as_json
@options.quiet
def shift(quiet: bool, as_json: bool, dist_timeout: float, **arguments: Any) -> None:
    """Measure how far images lie from what a model was trained on.

    Without source data: layer by layer, from the statistics that the model
    stores. With it: the images themselves and their features too, by eight
    metrics, before and after adapting. Writes a CSV and a JSON report.

    \b
    $ adaptkit shift --model source.pt --target target/ --source-data source/
    """
    from .terminal import print_shift

    with in_job(dist_timeout, arguments["device"], quiet=quiet) as (world, watch):
        from adaptkit.pipeline import shift_folders

        run = shift_folders(**arguments, progress=watch)
    if world.rank > 0:
        return
    if as_json:
        click.echo(run.report.to_json(), nl=False)
    elif not quiet:
        print_shift(run)
