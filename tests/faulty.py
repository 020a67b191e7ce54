"""The `adaptkit` command in which one process of a job goes wrong: for tests of faults.

torchrun ... faulty.py FAULT RANK adapt --source ...
"""

import os
import signal
import sys
import time
from typing import Any

import adaptkit
from adaptkit.data import ImageLoader
from cli import main

read = 0


def fail(kind: str) -> None:
    """Go wrong as asked."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    raise OSError("the disk made a noise")


def failing(kind: str, after: int) -> None:
    """Let the reading of images go wrong half way."""
    good = ImageLoader._found

    def found(self: ImageLoader, *which: Any) -> Any:
        global read
        read += 1
        if read > after:
            fail(kind)
        return good(self, *which)

    setattr(ImageLoader, "_found", found)  # noqa: B010  mypy forbids to assign it


if __name__ == "__main__":
    fault, rank, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        if fault == "version":
            adaptkit.__version__ = "0.0.9"
        elif fault.startswith("--"):
            arguments += fault.split("=")
        else:
            kind, _, after = fault.partition(":")
            failing(kind, int(after))
    main(arguments, prog_name="adaptkit")
