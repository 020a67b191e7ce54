"""What fails for a moment is tried again; what does not is said in a few words."""

import asyncio
import errno
import random
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from adaptkit.data.place import without_secrets

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try, more or less
HOPELESS = 16  # failures in a row, after which each thing is tried once
_MOST_ASKED = 30.0  # seconds that a server may ask to wait
_LATER = (408, 425, 429)  # besides those from 500 on, codes of what may work soon
_LASTING = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC)

_chance = random.Random()  # of its own, so that nobody's draws depend on a network
_failed = 0  # things in a row that could not be had, with all patience
_stopped = 0  # how often all was to end


def stop() -> None:
    """Try nothing again of what is under way."""
    global _stopped
    _stopped += 1


def patiently(work: Callable[[], T]) -> T:
    """Do what may fail for a while only, again and again, for about ten seconds in all.

    Where nothing works any more each thing is tried once, so that a run comes to its end.
    """
    global _failed  # a count that may be out by a few where threads meet
    waits = iter(WAITS if _failed < HOPELESS else ())
    before = _stopped
    while True:
        try:
            found = work()
        except Exception as error:
            passes = _passes(error)
            wait = next(waits, None) if passes and _stopped == before else None
            if wait is None:
                _failed += passes
                raise
            asked = _asked(error)
            # Not all at the same time.
            time.sleep(wait * _chance.uniform(0.5, 1.5) if asked is None else asked)
        else:
            _failed = 0
            return found


def _passes(error: Exception) -> bool:
    """Whether an error may be of the moment."""
    code = _code(error)
    if code is not None:
        return code >= 500 or code in _LATER
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, (*lasting, ssl.CertificateError)):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    if isinstance(error, (asyncio.TimeoutError, EOFError)):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # aiohttp's and botocore's, which may not be there to be imported.
    return bool(kinds & {"ClientConnectionError", "ClientPayloadError", "HTTPClientError"})


def _code(error: Exception) -> int | None:
    """Return the code of an answer by HTTP, as aiohttp, gcsfs and others have it."""
    for name in ("status", "code", "status_code"):
        code = getattr(error, name, None)
        if isinstance(code, int) and 400 <= code < 600:
            return code
    return None


def _asked(error: Exception) -> float | None:
    """Return the seconds that a server asks to wait."""
    headers = getattr(error, "headers", None) or {}
    seconds = str(headers.get("Retry-After", ""))
    return min(float(seconds), _MOST_ASKED) if seconds.isdecimal() else None


def reason_of(error: Exception) -> str:
    """Return why a place cannot be read, in a few words without secrets."""
    code = _code(error)
    if code is not None:
        try:
            phrase = f" {HTTPStatus(code).phrase}"
        except ValueError:
            phrase = ""
        hint = ": are credentials missing?" if code in (401, 403) else ""
        return f"HTTP {code}{phrase}{hint}"
    if isinstance(error, PermissionError):
        return "access denied: are credentials missing?"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "no answer in time"
    if type(error).__name__.lower().startswith("invalidurl"):
        return "not a valid URL"
    if isinstance(cause := getattr(error, "os_error", None), OSError):  # of aiohttp's
        host, text = getattr(error, "host", "the host"), cause.strerror or str(cause)
        return f"no connection to {host}: {text}"
    text = " ".join(without_secrets(str(error)).split())[:160]
    return text or type(error).__name__
