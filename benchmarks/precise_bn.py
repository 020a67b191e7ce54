"""fvcore's PreciseBN, a peer that not every machine has."""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import click

HINT = 'fvcore is missing: pip install -e ".[bench]"'


def installed() -> bool:
    """Whether fvcore is there."""
    return find_spec("fvcore") is not None


def those_installed(methods: Sequence[str]) -> list[str]:
    """Return methods without those of fvcore where it is missing, and say so."""
    if installed():
        return list(methods)
    click.echo(f"skipped fvcore PreciseBN: {HINT}", err=True)
    return [method for method in methods if not method.startswith("fvcore")]


def update_bn_stats() -> Callable[..., None]:
    """Return fvcore's function of that name, without torch's warning of fvcore's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from fvcore.nn.precise_bn import update_bn_stats as found
    return found  # type: ignore[no-any-return]
