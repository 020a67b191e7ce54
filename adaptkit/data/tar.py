"""The members of a tar file by their headers: nothing is unpacked, and no content is read."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from adaptkit.errors import DataError

BLOCK = 512
_MOST_HEADER = 2**20  # bytes of a long name or of a pax header
_MOST_HEADERS = 64  # of these before one member
_DIGITS = 19  # of the largest size in bytes that a system knows
_REGULAR = b"07\x00"
_WITHOUT_CONTENT = b"123456"
_KINDS = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "stored as a sparse file",
}
_ZSTD = b"\x28\xb5\x2f\xfd"


class Member(NamedTuple):
    """A file in a tar file.

    Args:
        name: as it stands there.
        offset: of its content, in bytes.
        size: of its content, in bytes.
        reason: why the content cannot be had; "" where it can.
    """

    name: str
    offset: int
    size: int
    reason: str


def members(path: Path, content: IO[bytes] | None = None) -> Iterator[Member]:
    """Yield the files in a tar file in their order, folders left out.

    Reads the formats v7, ustar, GNU and pax, and nothing but headers, so that what it takes depends
    on the number of members alone. Of a tar file without the mark that ends one, as a copy that was
    broken off, the last one has no name.

    Args:
        path: of the file.
        content: what it holds, where that is not what stands there.

    Raises:
        DataError: it cannot be read, is compressed, or is no tar file to its end.
    """
    try:
        with path.open("rb") if content is None else nullcontext(content) as file:
            end = os.fstat(file.fileno()).st_size
            yield from _members(path, file, end)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _members(path: Path, file: IO[bytes], end: int) -> Iterator[Member]:
    at, before, known = 0, 0, dict[str, str]()
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if len(header) == BLOCK and not any(header):
            return
        if at and len(header) < BLOCK:
            yield Member("", at, 0, "without an end mark")
            return
        if not _is_header(header):
            raise _broken(path, file, at)
        kind, size = header[156:157], _size(header)
        at += BLOCK
        if kind in (b"L", b"K", b"x", b"g", b"X"):
            before += 1
            if size is None or size > _MOST_HEADER or before > _MOST_HEADERS:
                raise DataError(f"{path} has a header at byte {at - BLOCK:,} that is too long")
            content = file.read(size)
            if kind == b"L":
                known["path"] = _text(content)
            elif kind != b"K" and kind != b"g":
                known |= _pax(path, content, at)
            at += _padded(size)
            continue
        if "size" in known:
            sized = known["size"].isdecimal() and len(known["size"]) <= _DIGITS
            size = int(known["size"]) if sized else None
        if size is None:
            raise DataError(f"{path} has a member at byte {at - BLOCK:,} without a size")
        if kind == b"S":
            at = _behind_sparse(file, header, at)
        name = known.get("GNU.sparse.name") or known.get("path") or _name(header)
        if kind in _WITHOUT_CONTENT:
            size = 0
        folder = kind == b"5" or (kind in _REGULAR and name.endswith("/"))
        reason = "" if kind in _REGULAR else _KINDS.get(kind, "no regular file")
        if any(key.startswith("GNU.sparse") for key in known):
            reason = _KINDS[b"S"]
        if not reason and at + size > end:
            reason = "cut off: the archive ends before it does"
        if not folder:
            yield Member(name, at, size, reason)
        at, before, known = at + _padded(size), 0, {}


def _is_header(header: bytes) -> bool:
    stated = _number(header[148:156])
    if len(header) < BLOCK or stated is None:
        return False
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stated == found:
        return True
    high = sum(byte > 127 for byte in header[:148]) + sum(byte > 127 for byte in header[156:])
    return stated == found - 256 * high  # of programs that took bytes for signed


def _broken(path: Path, file: IO[bytes], at: int) -> DataError:
    file.seek(0)
    if file.read(len(_ZSTD)) == _ZSTD:
        return DataError(
            f"{path} is compressed by zstd, which is not read here: unzstd it first (which costs "
            f"no space to speak of, as images are compressed themselves)"
        )
    if not at:
        return DataError(f"{path} is no tar file")
    return DataError(f"{path} is broken at byte {at:,}: expected the header of a member")


def _number(field: bytes) -> int | None:
    """Return a number of 0 or more, in octal or, marked by the first bit, in binary."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        found = int(digits, 8) if digits else 0
    except ValueError:
        return None
    return found if found >= 0 else None


def _size(header: bytes) -> int | None:
    return _number(header[124:136])


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax(path: Path, content: bytes, at: int) -> dict[str, str]:
    """Return the records of a pax header: each its length, a blank, a key, =, a value, an end."""
    found, start = {}, 0
    while start < len(content):
        blank = content.find(b" ", start, start + 10)
        head = content[start:blank] if blank > 0 else b""
        length = int(head) if head.isdigit() else 0
        key, equals, value = content[blank + 1 : start + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or start + length > len(content):
            raise DataError(f"{path} has a broken pax header at byte {at:,}")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        start += length
    return found


def _behind_sparse(file: IO[bytes], header: bytes, at: int) -> int:
    """Pass over the maps of holes that stand before the content of GNU's sparse files."""
    more = header[482]
    while more:
        block = file.read(BLOCK)
        at += BLOCK
        more = block[504] if len(block) == BLOCK else 0
    return at
