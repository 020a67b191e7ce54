"""A command that a launcher started several times, as one: one of its processes speaks."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from adaptkit.launched import launched

if TYPE_CHECKING:
    from adaptkit.distributed import World


@contextmanager
def in_job(
    dist_timeout: float, device: str, *, quiet: bool
) -> "Iterator[tuple[World, Callable[[str, int, int | None], None] | None]]":
    """Join the other processes, if there are some; the first one shows how far the work is."""
    with _without_collections():
        import adaptkit.pipeline  # noqa: F401  all that the job needs
        from adaptkit.distributed.launch import joined

        from .terminal import progress

    with (
        joined(dist_timeout, device) as world,
        progress(quiet=quiet or world.rank > 0) as watch,
    ):
        yield world, watch


@contextmanager
def _without_collections() -> Iterator[None]:
    """Look for no garbage: imports leave little, and the search takes a fifth of their time.

    Nor later among what they made, which stays to the end of the process.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


def say(text: str) -> None:
    """Print an error; of the processes of a job one does."""
    if launched() > 1:
        from adaptkit.distributed.launch import speaks

        if not speaks():
            return
    click.echo(text, err=True)
