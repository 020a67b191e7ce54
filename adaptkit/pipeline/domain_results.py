"""A folder of results, two files a domain: its pack, and what is known of how it came about."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import OutputError, few, shown
from adaptkit.files import write_files
from adaptkit.report.many import DomainRow

FORMAT = "adaptkit-domain/1"
SUMMARY_FORMAT = "adaptkit-domains/1"
PACK_END, RECORD_END = ".safetensors", ".domain.json"
_SUMMARY = tuple(f"summary{end}" for end in (".json", ".csv", ".html"))


@dataclass(frozen=True)
class Results:
    """The results of one run, or of several that make the same.

    A domain's files are written one after the other, each at once: first the record, which holds
    the pack's SHA-256, so that a pack is whole and its record's own or is made again. Processes
    that write the same domain do no harm: they write the same.

    Args:
        folder: where they lie.
        made_from: all that decides about a result, but for the domain's images; of JSON's types.
    """

    folder: Path
    made_from: Mapping[str, Any]

    def check(self, domains: Sequence[str], *, force: bool) -> None:
        """Refuse a folder in which something else would be replaced; `force` allows it.

        Raises:
            OutputError: it holds other results, or files of these names that are no results.
        """
        if force:
            return
        summary, *others = (self.folder / name for name in _SUMMARY)
        try:
            records = {name: self._record(name) for name in domains}
            there = {name for name, path in records.items() if _exists(path)}
            alone = [self.pack(name) for name in domains if name not in there]
            alone += [] if _exists(summary) else others
            for path in filter(_exists, alone):
                raise _foreign(path)
            if _exists(summary):
                found = _content(summary)
                theirs = found.get("made_from")
                if found.get("format") != SUMMARY_FORMAT or not isinstance(theirs, dict):
                    raise _foreign(summary)
                self._check_same(theirs)
            for name in there:
                self._check_same(_read(records[name])["made_from"])
        except OSError as error:
            raise OutputError(f"cannot use {self.folder}: {error.strerror}") from None

    def holds(self, domain: str, images: str) -> bool:
        """Whether a domain's result is there and whole, made from the same and from such images."""
        path, pack = self._record(domain), self.pack(domain)
        if not _exists(path) or not _exists(pack):
            return False
        found = _read(path)
        now = {"made_from": self.made_from, "images": images}
        now["pack_sha256"] = _sha256(pack.read_bytes())
        return all(found[name] == value for name, value in now.items())

    def write(
        self, row: DomainRow, images: str, pack: bytes | None, once: str | None = None
    ) -> None:
        """Write a domain's result, in the place of one that was there.

        Args:
            row: what became of it.
            images: the state of its files (see `Listing.state`).
            pack: its statistics; None: it has none.
            once: the SHA-256 of the pooled pack that it was scored with, if it was.

        Raises:
            OutputError: the system refused.
        """
        files = {} if pack is None else {self.pack(row.domain): pack}
        record = {
            "format": FORMAT,
            "made_from": self.made_from,
            "images": images,
            "pack_sha256": None if pack is None else _sha256(pack),
            "pooled_sha256": once,
            "row": asdict(row),
        }
        if pack is None:
            _remove(self.pack(row.domain))
        write_files({self._record(row.domain): as_json(record), **files})

    def write_again(self, row: DomainRow, once: str | None) -> None:
        """Write anew what is known of a domain, beside a pack that stays.

        Raises:
            OutputError: its record is broken, or the system refused.
        """
        path = self._record(row.domain)
        record = {**_read(path), "pooled_sha256": once, "row": asdict(row)}
        write_files({path: as_json(record)})

    def scored_with(self, domain: str) -> str | None:
        """Return the SHA-256 of the pooled pack that a domain was scored with, if it was.

        Raises:
            OutputError: its record is broken.
        """
        found: str | None = _read(self._record(domain)).get("pooled_sha256")
        return found

    def beside(self, domains: Collection[str]) -> list[str]:
        """Return the names of other domains whose packs lie there too, sorted.

        Raises:
            OutputError: the folder cannot be read.
        """
        try:
            ends = [path.name for path in self.folder.iterdir() if path.name.endswith(RECORD_END)]
            names = {name.removesuffix(RECORD_END) for name in ends} - {*domains}
            return sorted(name for name in names if _exists(self.pack(name)))
        except OSError as error:
            raise OutputError(f"cannot read {self.folder}: {error.strerror}") from None

    def row(self, domain: str) -> DomainRow:
        """Return what became of a domain whose result is there.

        Raises:
            OutputError: its record is broken.
        """
        return DomainRow(**_read(self._record(domain))["row"])

    def write_summary(self, details: Mapping[str, Any], csv: str, page: str) -> tuple[Path, ...]:
        """Write what all domains come to, and return the files.

        Raises:
            OutputError: the system refused.
        """
        paths = tuple(self.folder / name for name in _SUMMARY)
        head = {"format": SUMMARY_FORMAT, "made_from": self.made_from}
        whole = as_json({**head, **details}), as_bytes(csv), as_bytes(page)
        write_files(dict(zip(paths, whole, strict=True)))
        return paths

    def pack(self, domain: str) -> Path:
        """Return where a domain's statistics go."""
        return self.folder / f"{domain}{PACK_END}"

    def _record(self, domain: str) -> Path:
        return self.folder / f"{domain}{RECORD_END}"

    def _check_same(self, other: Mapping[str, Any]) -> None:
        names = [k for k in {**self.made_from, **other} if self.made_from.get(k) != other.get(k)]
        if names:
            theirs, ours = (_said(where.get(names[0])) for where in (other, self.made_from))
            more = "" if len(names) == 1 else f"; also {few(names[1:], 20)}"
            raise OutputError(
                f"{self.folder} holds results of another run ({names[0]} {theirs}, now "
                f"{ours}{more}): use --force (force=True) to replace them, or another --out"
            )


def as_json(content: Any) -> bytes:
    """Return JSON; names that are no text in any encoding are in it by JSON's own escapes."""
    return as_bytes(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def as_bytes(text: str) -> bytes:
    r"""Return text in UTF-8, with an escape for what of a broken file name cannot be written so.

    >>> as_bytes("\udcff")
    b'\\udcff'
    """
    return text.encode("utf-8", "backslashreplace")


def _exists(path: Path) -> bool:
    """Whether anything is there; a name that cannot be one is an error, which `exists` may hide."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}") from None


def _read(path: Path) -> dict[str, Any]:
    """Return a domain's record."""
    found = _content(path)
    try:
        DomainRow(**found["row"])
        ours = found["format"] == FORMAT and {"images", "pack_sha256"} <= found.keys()
        ours = ours and isinstance(found["made_from"], dict)
    except (KeyError, TypeError):
        ours = False
    if not ours:
        raise _foreign(path)
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _foreign(path) from None
    return found if isinstance(found, dict) else {}


def _foreign(path: Path) -> OutputError:
    return OutputError(
        f"{path} exists already and is no result of such a run: use --force (force=True) to "
        f"replace it, or another --out"
    )


def _said(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
