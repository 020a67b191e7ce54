"""`adaptkit inspect`: what a checkpoint is."""

import json
from pathlib import Path
from typing import Any

import click

from . import options


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@options.arch
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    checkpoint: Path, arch: str | None, arch_kwargs: dict[str, Any] | None, as_json: bool
) -> None:
    """Say what a checkpoint is: architecture, images, norm layers.

    No code in the file runs, and nothing is written.

    \b
    $ adaptkit inspect model.pt
    """
    from adaptkit.pipeline import inspect_checkpoint

    from .terminal import print_inspection

    found = inspect_checkpoint(checkpoint, arch=arch, arch_kwargs=arch_kwargs)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_inspection(found)
