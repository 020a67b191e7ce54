"""What can go wrong at the user's side; every message says what was expected and what to do."""

from collections.abc import Sequence
from typing import Any


class AdaptkitError(Exception):
    """The base of every error that adaptkit raises for something its user can put right."""


class CheckpointError(AdaptkitError):
    """A checkpoint cannot be read, does not fit its architecture, or holds bad values."""


class DataError(AdaptkitError):
    """Target data is missing, unreadable, or not of the form that was asked for."""


class EstimationError(AdaptkitError):
    """The statistics of a model cannot be estimated on this data."""


class DeviceError(AdaptkitError):
    """The asked-for device is not on this machine."""


class OutputError(AdaptkitError):
    """A result cannot be written where it was asked for."""


class ModelError(AdaptkitError):
    """A model is not of a form that can be converted or measured as was asked."""


class DistributedError(AdaptkitError):
    """Processes that work together differ, failed, or lost touch with each other."""


class DependencyError(AdaptkitError):
    """A package that only some of adaptkit needs is not installed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed in work that can go on; the message says how."""


class Stopped(BaseException):
    """The process was told to end, as a launcher does when another one of its job has died."""


def few(names: Sequence[Any], most: int = 3) -> str:
    """Return the first of some names found in a file, as a piece of one line.

    >>> few(["a", "b", "c", "d"], 2)
    'a, b, ...'
    """
    return ", ".join(map(shown, names[:most])) + (", ..." if len(names) > most else "")


def shown(what: Any) -> str:
    r"""Return something found in a file as a piece of one line.

    >>> shown("two\nlines")
    "'two\\nlines'"
    """
    text = what if isinstance(what, str) and what.isprintable() else ascii(what)
    return " ".join(text.split())[:160]
