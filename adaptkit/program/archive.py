"""The records of a program's archive, and the same archive with other bytes in some of them."""

import io
import re
import zipfile
from collections.abc import Mapping

from adaptkit.errors import CheckpointError, shown
from adaptkit.exact import is_packed

_ZIP = b"PK\x03\x04"
_FORMAT = "archive_format"
_BEFORE_ARCHIVES = "serialized_exported_program.json"  # until torch 2.7
_ALIGNED = 64  # bytes, as torch aligns what records hold
_MOST_RECORDS = 100_000
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|"
    r"models/[\w.-]+\.json|data/sample_inputs/[\w.-]+\.pt|"
    r"data/(weights|constants)/((weight|tensor)_\d+|[\w.-]+_config\.json)|extra/[\w. /-]+"
)
_PICKLED = re.compile(r"data/(weights|constants)/[\w.-]+\.pt")  # all weights at once
_ANEW = "load it with torch.export.load and save it with torch.export.save of this one"


class Archive:
    """What is in the bytes of a program's file, by names without the folder around them all.

    Raises:
        CheckpointError: it is not as torch.export.save writes it, or larger than its bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        records = self._zip.infolist()
        names = [record.filename for record in records]
        if _BEFORE_ARCHIVES in names:
            raise CheckpointError(f"was written by an older torch: {_ANEW}")
        if is_packed(self._zip, len(content)):
            raise CheckpointError(
                "is broken: its records are compressed or overlap, as torch never writes them"
            )
        if len(set(names)) < len(names) or len(names) > _MOST_RECORDS:
            raise CheckpointError("is broken: it has two records of a name, or too many")
        self._folder = names[0].split("/")[0] + "/"
        self.names = [self._bare(name) for name in names]
        if self.read(_FORMAT) != b"pt2":
            raise CheckpointError(f"is of an unknown format {shown(self.read(_FORMAT)[:16])}")
        if "byteorder" in self.names and self.read("byteorder") != b"little":
            raise CheckpointError(f"was written by a big-endian machine: there, {_ANEW}")

    def read(self, name: str) -> bytes:
        """Return what a record holds."""
        return self._zip.read(self._folder + name)

    def only(self, pattern: str) -> str:
        """Return the name of the one record whose name matches."""
        found = [name for name in self.names if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise CheckpointError(
                f"holds {len(found)} programs, expected one: save it by itself with "
                f"torch.export.save(program, ...)"
            )
        return found[0]

    def with_records(self, changed: Mapping[str, bytes]) -> bytes:
        """Return the archive with other bytes in some records, and those new that it lacks."""
        buffer = io.BytesIO()
        added = dict(changed)
        with zipfile.ZipFile(buffer, "w") as archive:
            for old in self._zip.infolist():
                held = added.pop(old.filename.removeprefix(self._folder), None)
                record = _aligned(old.filename, old.date_time, buffer.tell())
                archive.writestr(record, self._zip.read(old) if held is None else held)
            for name, held in added.items():
                date = self._zip.infolist()[0].date_time
                archive.writestr(_aligned(self._folder + name, date, buffer.tell()), held)
        return buffer.getvalue()

    def _bare(self, name: str) -> str:
        bare = name.removeprefix(self._folder)
        if _PICKLED.fullmatch(bare):
            raise CheckpointError(f"was written by an older torch: {_ANEW}")
        if bare == name or ".." in name.split("/") or not _KNOWN.fullmatch(bare):
            raise CheckpointError(
                f"holds '{shown(name)}', which is no part of a program of tensors alone: save it "
                f"with torch.export.save, uncompiled and without objects of other classes"
            )
        return bare


def is_program(content: bytes) -> bool:
    """Whether a file is a program of torch.export, by the names of its records.

    >>> is_program(b"something else")
    False
    """
    if not content.startswith(_ZIP):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001  on broken files, zipfile raises anything
        return False
    return any(name.split("/")[-1] in (_FORMAT, _BEFORE_ARCHIVES) for name in names)


def _aligned(name: str, date: tuple[int, int, int, int, int, int], at: int) -> zipfile.ZipInfo:
    """Describe a record so that what it holds begins where torch would have it begin."""
    record = zipfile.ZipInfo(name, date)
    header = at + zipfile.sizeFileHeader + len(name.encode()) + 4  # type: ignore[attr-defined]
    padding = -header % _ALIGNED
    record.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return record
