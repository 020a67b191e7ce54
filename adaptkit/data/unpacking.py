"""Compressed files, decompressed once for the time of a run."""

import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from adaptkit.errors import DataError

_LEFT = 0.1  # of a disk, which is never filled further
_PIECE = 2**22  # bytes that are decompressed at a time
_OPENED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def decompressed(path: Path) -> IO[bytes] | None:
    """Return what a file holds that gzip, bzip2 or xz compressed; None of any other.

    It is in a temporary file, which has no name: it is gone when it is closed, or with its process,
    however that ends.

    Raises:
        DataError: the file is broken, or there is no room for what it holds.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.gz")
    ...     _ = path.write_bytes(gzip.compress(b"hello"))
    ...     with decompressed(path) as file:
    ...         file.read()
    b'hello'
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    opened = next((o for magic, o in _OPENED.items() if start.startswith(magic)), None)
    return None if opened is None else _unpacked(path, opened)


def _unpacked(path: Path, opened: Callable[[Path], Any]) -> IO[bytes]:
    try:
        found = tempfile.TemporaryFile()  # noqa: SIM115  whoever asked closes it
    except OSError as error:
        raise DataError(f"{path}: no place to decompress it: {error.strerror}") from None
    try:
        with opened(path) as packed:
            while piece := _next(path, packed):
                _keep(path, piece, found)
        found.seek(0)
    except BaseException:
        found.close()
        raise
    return found


def _next(path: Path, packed: IO[bytes]) -> bytes:
    try:
        return packed.read(_PIECE)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is compressed and broken: {reason}") from None


def _keep(path: Path, piece: bytes, found: IO[bytes]) -> None:
    folder = tempfile.gettempdir()
    try:
        disk = shutil.disk_usage(folder)
        room = disk.free - len(piece) >= _LEFT * disk.total
        if room:
            found.write(piece)
            found.flush()
    except OSError:
        room = False
    if not room:
        raise DataError(
            f"{path} is compressed, and {folder} has no room for what it holds (a tenth is left "
            f"free): decompress it elsewhere, or set TMPDIR"
        )
