"""`adaptkit adapt`: a checkpoint and a folder of images to an adapted checkpoint and a report."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from . import options
from .job import in_job


@click.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    required=True,
    metavar="CKPT",
    help="The trained model: .pt, .pth, .ckpt, .safetensors, .pt2 and others. Never changed.",
)
@click.option(
    "--target",
    type=options.place,
    required=True,
    metavar="DIR|FILE|URL",
    help="Images of the new domain: class folders, or any folder without labels. Or a file: a "
    "manifest or table (.csv .tsv .parquet), an array (.npy .npz .pt .safetensors), a .tar. Or the "
    "URL of these: https://, s3://, gs:// and what else fsspec knows.",
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
    "--method",
    type=click.Choice(["adabn", "adain"]),
    default="adabn",
    show_default=True,
    help="adain restyles each image by itself to the source's channel means and "
    "deviations: for mixed domains, single images, models without BatchNorm.",
)
@options.arch
@click.option(
    "--samples",
    callback=options.count_or_all,
    metavar="N|all",
    help="Images the statistics are taken from, drawn at random. More for "
    "precision, fewer for speed. [default: 1024; with --tolerance: all]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Draw 128, 256, ... images until every layer's standard error is within X; "
    "0.02 is 2% of a standard deviation. For large targets.",
)
@click.option(
    "--mode",
    type=click.Choice(["exact", "stream"]),
    default="exact",
    show_default=True,
    help="stream: an approximation, for more samples than memory holds.",
)
@click.option(
    "--memory",
    callback=options.size,
    metavar="SIZE",
    help="What waiting activations may take, and decoded images of each domain, such as 4GiB. "
    "When others need the machine. [default: half, and a quarter, of what is free]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Of the estimation. bf16 where speed counts more than the last digits and "
    "the processor has it; auto is fp32.",
)
@click.option(
    "--layers",
    multiple=True,
    metavar="GLOB",
    help="Adapt only norm layers of these names, as in 'layer1.*'. Early layers "
    "carry the domain. Repeatable. [default: all]",
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Count the source's statistics for N images; about 8 for fewer than 32 images.",
)
@click.option(
    "--stats-only",
    is_flag=True,
    help="Write the statistics alone, for `adaptkit apply`: kilobytes a domain.",
)
@click.option(
    "--certify",
    is_flag=True,
    help="Report how far the adapted model is from seeing what it stores.",
)
@click.option(
    "--holdout",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0,
    show_default=True,
    metavar="SHARE",
    help="Score this share of the images and adapt to the others; 0.5 for an accuracy "
    "on images that were not adapted to.",
)
@click.option(
    "--guard",
    type=click.Choice(["auto", "off", "report"]),
    default="auto",
    show_default=True,
    help="auto: judge without labels whether adapting helps, and keep the source's "
    "statistics where it would hurt. report: say so, and adapt all the same. It knows "
    "more of a model from `adaptkit calibrate`, or with --source-data in class folders.",
)
@click.option(
    "--class-shares",
    default="auto",
    show_default=True,
    metavar="auto|uniform|FILE",
    help="The target's mix of classes. auto: the guard's estimate. Where you know it: a "
    "CSV of class,share. Needs a calibrated model, or --source-data in class folders.",
)
@click.option(
    "--domains",
    type=click.Choice(["one", "auto", "folder"]),
    default="one",
    show_default=True,
    help="auto: look whether the target is several domains mixed, and adapt to each by "
    "itself. Writes a model a domain, and what routes images among them. folder: each "
    "sub-folder is a domain, or what a file's column 'domain' says. Writes the statistics "
    "of each, and of all as one, as with --stats-only, and a summary, into the folder "
    "--out [default: <source>-domains here]; goes on where it was stopped.",
)
@click.option(
    "--input-fit",
    is_flag=True,
    help="First fit a gain and an offset of the images, which undo contrast, brightness "
    "and inversion. Not AdaBN; reported apart.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where the same line, with --mode stream, was stopped; else begin.",
)
@options.preparation
@options.source_data
@options.reading
@options.dist_timeout
@options.force
@options.seed
@options.as_json
@options.quiet
def adapt(quiet: bool, as_json: bool, dist_timeout: float, **arguments: Any) -> None:
    """Adapt a trained model to unlabelled images of a new domain.

    Re-estimates its normalisation statistics on them (AdaBN), or restyles them to
    the source's (--method adain).

    Writes the adapted model, a CSV and a JSON report. With class folders the
    accuracy before and after is measured too; labels are used for nothing else.

    \b
    $ adaptkit adapt --source source.pt --target target/
    Adapted 4 norm layers on 897 of 897 images
    ...
    Wrote
      source-adapted.pt
      ...
    """
    from .terminal import print_run

    if arguments["domains"] == "folder":
        _adapt_domains(quiet, as_json, dist_timeout, arguments)
        return
    with in_job(dist_timeout, arguments["device"], quiet=quiet) as (world, watch):
        from adaptkit.pipeline import adapt_folder, interruptible

        arguments["layers"] = arguments["layers"] or None
        with interruptible(adapt_folder, arguments):
            run = adapt_folder(**arguments, progress=watch)
    if world.rank > 0:
        return
    if as_json:
        click.echo(run.report.to_json(), nl=False)
    elif not quiet:
        print_run(run)


_NOT_OF_DOMAINS = ("report", "method", "stats_only", "certify", "input_fit", "resume")


def _adapt_domains(
    quiet: bool, as_json: bool, dist_timeout: float, arguments: dict[str, Any]
) -> None:
    """Adapt to each domain; fail at the end if one failed."""
    from .domains import print_domains

    source_of, default = click.get_current_context().get_parameter_source, ParameterSource.DEFAULT
    given = [name for name in _NOT_OF_DOMAINS if source_of(name) != default]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(
            f"--domains folder writes the statistics of each domain and one summary of all: "
            f"leave out {names}"
        )
    kept = {k: v for k, v in arguments.items() if k not in (*_NOT_OF_DOMAINS, "domains")}
    with in_job(dist_timeout, arguments["device"], quiet=quiet) as (world, watch):
        from adaptkit.errors import few
        from adaptkit.pipeline import adapt_domain_folders, interruptible

        kept["layers"] = kept["layers"] or None
        with interruptible(adapt_domain_folders, {**kept, "domains": "folder"}):
            run = adapt_domain_folders(**kept, progress=watch)
    if world.rank > 0:
        return
    if as_json:
        click.echo(run.to_json(), nl=False)
    elif not quiet:
        print_domains(run)
    if run.failed:
        raise click.ClickException(
            f"{len(run.failed):,} of {len(run.rows):,} domains failed: {few(run.failed)}; see "
            f"{run.folder / 'summary.csv'}"
        )
    if run.pooled is not None and run.pooled.error:
        raise click.ClickException(f"the pooled result failed: {run.pooled.error}")
