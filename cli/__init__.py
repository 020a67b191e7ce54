"""The `adaptkit` command. Nothing here imports torch before a command needs it."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from adaptkit import __version__
from adaptkit.errors import AdaptkitError, Interrupted, Stopped
from adaptkit.launched import launched

from .adapt import adapt
from .apply import apply
from .calibrate import calibrate
from .demo import demo
from .inspect import inspect
from .job import say
from .report import report
from .shift import shift

INTERRUPTED = 130
STOPPED = 143
_OVER_PROCESSES = ("adapt", "shift")  # commands that a launcher may start several times, as one


class _Group(click.Group):
    """Commands whose every failure is one line on stderr that begins with `Error:`."""

    def invoke(self, ctx: click.Context) -> Any:
        # On large or odd images: what cannot be read is named in the output anyway.
        warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
        try:
            return super().invoke(ctx)
        except AdaptkitError as error:
            raise click.ClickException(str(error)) from error
        except RuntimeError as error:
            # torch reports the death of a worker in whatever the main process is doing just then.
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise click.ClickException(
                "a process that decodes images ended unexpectedly (out of memory?): "
                "use fewer --workers, or a smaller --batch-size"
            ) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except (click.Abort, KeyboardInterrupt) as error:
            if not standalone_mode:
                raise
            how = f" {error.__cause__}" if isinstance(error.__cause__, Interrupted) else ""
            say(f"Interrupted.{how}")
            code = INTERRUPTED
        except Stopped:
            if not standalone_mode:
                raise
            say(
                "Error: stopped from outside, as a launcher does when a process of its job has "
                "ended."
            )
            code = STOPPED
        except click.ClickException as error:
            if not standalone_mode:
                raise
            say("Error: " + " ".join(error.format_message().split()))
            code = error.exit_code
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(__version__, prog_name="adaptkit")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Take a trained PyTorch model to a new domain without labels.

    \b
    Try it:      adaptkit demo
    Your own:    adaptkit adapt --source model.pt --target images/
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif launched() > 1 and ctx.invoked_subcommand not in _OVER_PROCESSES:
        if os.environ["RANK"] != "0":  # which all say alike, and one is enough
            ctx.exit(1)
        raise click.ClickException(
            f"`adaptkit {ctx.invoked_subcommand}` works in one process: start it without torchrun"
        )


main.add_command(adapt)
main.add_command(apply)
main.add_command(calibrate)
main.add_command(demo)
main.add_command(inspect)
main.add_command(report)
main.add_command(shift)
