"""Files that are read at any place, by any thread."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, ClassVar

from adaptkit.errors import DataError

MOST_OPEN = 256  # files, of the 1,024 that a process often may have


class OpenFiles:
    """Files that are read at any place by any thread, most of them opened once.

    Several of these, as of many domains, share how many files may be open.

    Args:
        paths: of the files.

    Attributes:
        held: whether some of them can be read by this process alone, as they have no name.
    """

    open_in_all: ClassVar[int] = 0

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}
        self.held = False

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[Sequence[Path]]]:
        if self.held:
            raise DataError(
                "tar files from a URL, and compressed ones, are open in this process alone: open "
                "them anew in another"
            )
        return OpenFiles, (self.paths,)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        OpenFiles.open_in_all -= len(self._open)

    def hold(self) -> None:
        """Open all, so that they can be read when they have no name any more."""
        for number, path in enumerate(self.paths):
            if number not in self._open:
                self._open[number] = os.open(path, os.O_RDONLY)
                OpenFiles.open_in_all += 1
        self.held = True

    def take(self, number: int, content: IO[bytes]) -> None:
        """Read a file from now on as what an open file without a name holds.

        Raises:
            DataError: too many are open.
        """
        if OpenFiles.open_in_all >= MOST_OPEN:
            raise DataError(
                f"{self.paths[number]}: expected at most {MOST_OPEN} compressed tar files at a "
                f"time: decompress them first"
            )
        self._open[number] = os.dup(content.fileno())
        OpenFiles.open_in_all += 1
        self.held = True

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return bytes of a file."""
        descriptor = self._open.get(number)
        if descriptor is None and OpenFiles.open_in_all < MOST_OPEN:
            # Without a lock, which a process forked meanwhile would find locked for ever.
            opened = os.open(self.paths[number], os.O_RDONLY)
            descriptor = self._open.setdefault(number, opened)
            if descriptor == opened:
                OpenFiles.open_in_all += 1
            else:
                os.close(opened)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        with self.paths[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)
