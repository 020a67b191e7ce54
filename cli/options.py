"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def count_or_all(_: click.Context, __: click.Parameter, value: str) -> int | str:
    """Read a whole number of 1 or more, or the word "all"."""
    if value == "all":
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
