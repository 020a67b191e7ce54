"""`adaptkit adapt`: a checkpoint and a folder of images to an adapted checkpoint and a report."""

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
    help="The trained model: .pt, .pth or .safetensors. Never changed.",
)
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Images of the new domain: class folders, or any folder without labels.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The adapted model. [default: <source>-adapted.<suffix> here]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="PATH.csv",
    help="The figures; a .json lies beside. [default: named after --out]",
)
@click.option(
    "--arch",
    metavar="SPEC",
    help="For a file that does not name its architecture: torchvision:resnet18.",
)
@click.option(
    "--samples",
    callback=options.count_or_all,
    metavar="N|all",
    default="1024",
    show_default=True,
    help="How many images the statistics are taken from, drawn at random.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda, cuda:N or mps. auto takes the first of cuda, mps, cpu.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Images at a time. Does not change the result.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Processes that decode images; 0 uses this one.",
)
@click.option(
    "--skip-bad", is_flag=True, help="Go on when more than a tenth of the images cannot be read."
)
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
@options.seed
@options.quiet
def adapt(quiet: bool, **arguments: Any) -> None:
    """Re-estimate a model's normalisation statistics on unlabelled images (AdaBN).

    Writes the adapted model, a CSV and a JSON report. With class folders the
    accuracy before and after is measured too; labels are used for nothing else.

    \b
    $ adaptkit adapt --source source.pt --target target/
    Adapted 4 norm layers on 897 of 897 images
    ...
    Wrote source-adapted.pt, source-adapted.csv, source-adapted.json
    """
    from .terminal import print_run, progress

    with progress(quiet=quiet) as report_progress:
        from adaptkit.pipeline import adapt_folder

        run = adapt_folder(**arguments, progress=report_progress)
    if not quiet:
        print_run(run)
