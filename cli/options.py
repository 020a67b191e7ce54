"""Options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}


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


def arch(function: F) -> F:
    """--arch: what a file needs that does not name its architecture, nor has it in its keys."""
    return click.option(
        "--arch",
        metavar="SPEC",
        help="As in torchvision:resnet18 or ibn:resnet50_ibn_a. "
        "[default: what the file says, or its keys and shapes show]",
    )(function)


def force(function: F) -> F:
    """--force: replace outputs that exist."""
    return click.option("--force", is_flag=True, help="Replace outputs that exist.")(function)


def source_data(function: F) -> F:
    """--source-data: what the target is compared with."""
    return click.option(
        "--source-data",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Images of the domain the model was trained on, to measure the shift from; "
        "with class folders the target's accuracy is estimated too.",
    )(function)


def reading(function: F) -> F:
    """--device, --batch-size, --workers, --skip-bad: how folders of images are read and run."""
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
                "--skip-bad",
                is_flag=True,
                help="Go on when more than a tenth of the images cannot be read.",
            ),
        )
    ):
        function = option(function)
    return function
