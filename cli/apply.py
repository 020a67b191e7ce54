"""`adaptkit apply`: a base checkpoint and a domain's statistics to that domain's checkpoint."""

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
    help="The model that the statistics were estimated for. Never changed.",
)
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PACK",
    help="What `adaptkit adapt --stats-only` wrote.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="The adapted model.",
)
@options.arch
@options.force
@options.quiet
def apply(
    source: Path,
    stats: Path,
    out: Path,
    arch: str | None,
    arch_kwargs: dict[str, Any] | None,
    force: bool,
    quiet: bool,
) -> None:
    """Give a model the statistics of a domain.

    \b
    $ adaptkit adapt --source net.pt --target images/ --stats-only
    $ adaptkit apply --source net.pt --stats net-statistics.safetensors --out b.pt
    Wrote b.pt: 4 norm layers from 897 images
    """
    from adaptkit.pipeline import apply_statistics

    statistics = apply_statistics(
        source, stats, out, arch=arch, arch_kwargs=arch_kwargs, force=force
    )
    if not quiet:
        click.echo(f"Wrote {out}: {len(statistics)} norm layers from {statistics.samples:,} images")
