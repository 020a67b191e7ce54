"""Options that several commands share."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}


def place(value: str) -> str | Path:
    """Take a path on this machine, or a URL, whose slashes a path would lose."""
    if not value:  # as of a shell's variable that is not set, which would be this folder
        raise click.BadParameter("expected a path or a URL, got nothing")
    return value if "://" in value else Path(value)


def size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Read a size in bytes, such as 500MB or 4GiB."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?i?)b?", value.strip().lower())
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise click.BadParameter(f"{value!r} is not a size such as 500MB or 4GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def count_or_all(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """Read a whole number of 1 or more, or the word "all"."""
    if value is None or value == "all":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is not a whole number of 1 or more, nor 'all'")
    return int(value)


def height_width(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Read a size in pixels, such as 224 or 240x320 (height x width)."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:[x,](\d{1,5}))?", value.strip().lower())
    if not found:
        raise click.BadParameter(f"{value!r} is not a size such as 224 or 240x320 (height x width)")
    return int(found[1]), int(found[2] or found[1])


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> list[float] | None:
    """Read numbers that commas part."""
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list such as 0.485,0.456,0.406") from None


def key_values(
    _: click.Context, __: click.Parameter, value: Sequence[str]
) -> dict[str, Any] | None:
    """Read arguments for an architecture."""
    if not value:
        return None
    from adaptkit.architectures import argument

    return dict(map(argument, value))


def seed(function: F) -> F:
    """--seed: what everything random is drawn from."""
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        metavar="N",
        default=0,
        show_default=True,
        help="Decides everything that is random.",
    )(function)


def quiet(function: F) -> F:
    """--quiet: print nothing but errors."""
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(function)


def as_json(function: F) -> F:
    """--json: the report's JSON instead of a table."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the JSON report, and nothing else, on stdout.",
    )(function)


def arch(function: F) -> F:
    """--arch, --arch-arg: of a file that does not name its architecture, nor has it in its keys."""
    for option in reversed(
        (
            click.option(
                "--arch",
                metavar="SPEC",
                help="torchvision:NAME, timm:NAME, ibn:NAME, or your own code: "
                "FILE.py:FACTORY, package.module:FACTORY. [default: what the file says, or "
                "its keys and shapes show]",
            ),
            click.option(
                "--arch-arg",
                "arch_kwargs",
                multiple=True,
                callback=key_values,
                metavar="KEY=VALUE",
                help="For the architecture's constructor, as in aux_logits=false. Repeatable.",
            ),
        )
    ):
        function = option(function)
    return function


def preparation(function: F) -> F:
    """--image-size, --mean, --std, --channels and others: what the model takes, gives."""
    for option in reversed(
        (
            click.option(
                "--image-size",
                callback=height_width,
                metavar="N|HxW",
                help="Pixels that the model sees. [default, like the next five: what the file "
                "says, or what is published with the architecture]",
            ),
            click.option(
                "--mean",
                callback=numbers,
                metavar="X,Y,Z",
                help="Of the channels, in units of 0 to 1; one number for all, or one each.",
            ),
            click.option(
                "--std", callback=numbers, metavar="X,Y,Z", help="The same for their deviations."
            ),
            click.option(
                "--channels",
                type=click.Choice(["1", "3"]),
                callback=lambda _, __, value: value and int(value),
                help="1: grey images.",
            ),
            click.option(
                "--resize",
                type=click.Choice(["stretch", "crop"]),
                help="stretch to the size, or crop: scale the shorter side, take the centre.",
            ),
            click.option(
                "--interpolation",
                type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
                help="In resizing. EfficientNets and many of timm's want bicubic.",
            ),
            click.option(
                "--classes",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Names of the model's outputs, one a line.",
            ),
        )
    ):
        function = option(function)
    return function


def force(function: F) -> F:
    """--force: replace outputs that exist."""
    return click.option("--force", is_flag=True, help="Replace outputs that exist.")(function)


def source_data(function: F) -> F:
    """--source-data: what the target is compared with."""
    return click.option(
        "--source-data",
        type=place,
        metavar="DIR|FILE|URL",
        help="Images of the domain the model was trained on, to measure the shift from; "
        "with class folders the target's accuracy is estimated too.",
    )(function)


def dist_timeout(function: F) -> F:
    """--dist-timeout: how long the processes of a job wait for one that is silent."""
    return click.option(
        "--dist-timeout",
        type=click.FloatRange(min=1),
        default=600,
        show_default=True,
        metavar="SECONDS",
        help="Under torchrun: give up on a process without a sign of life for so long.",
    )(function)


def reading(function: F) -> F:
    """--device, --batch-size, --workers, --fast-jpeg, --skip-bad: how images are read and run."""
    for option in reversed(
        (
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar="DEVICE",
                help="auto, cpu, cuda, cuda:N or mps. auto takes the first of cuda, mps, cpu.",
            ),
            click.option(
                "--batch-size",
                type=click.IntRange(min=1),
                default=64,
                show_default=True,
                metavar="N",
                help="Images at a time. Does not change the result.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                metavar="N",
                help="Processes that decode images; 0 uses this one.",
            ),
            click.option(
                "--fast-jpeg",
                is_flag=True,
                help="Decode large JPEG files at part of their size: faster, not quite the same.",
            ),
            click.option(
                "--skip-bad",
                is_flag=True,
                help="Go on when more than a tenth of the images cannot be read.",
            ),
        )
    ):
        function = option(function)
    return function
