"""From an exception in a user's code to one line that says what, and where."""

import sysconfig
import traceback
from pathlib import Path

from adaptkit.errors import shown

_OURS = str(Path(__file__).parent.parent)
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def account(error: BaseException) -> str:
    """Return an exception's kind, place and message, as a piece of one line.

    >>> try:
    ...     compile("f(", "nets.py", "exec")
    ... except SyntaxError as error:
    ...     account(error)
    "SyntaxError (nets.py, line 1): '(' was never closed"
    """
    place = where(error)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    first = next((line for line in said.split("\n") if line.strip()), "")
    return (
        type(error).__name__
        + (f" ({shown(place[0])}, line {place[1]})" if place else "")
        + (f": {shown(first)}" if first else "")
    )


def where(error: BaseException) -> tuple[str, int] | None:
    """Return the file and the line at which a user's code raised, None if it was not reached.

    Where libraries raised, it is the line that called them.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return error.filename, error.lineno
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((_OURS, "<frozen "))
    ]
    outside = [frame for frame in frames if not frame[0].startswith(_LIBRARIES)]
    return next(reversed(outside or frames), None)
