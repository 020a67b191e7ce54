"""Images below a folder, or in a manifest, that URLs name."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from PIL import Image

from adaptkit.data.connections import connection, content, give_up, stamp_in, threads
from adaptkit.data.decode import Needed, decode, image_size
from adaptkit.data.listing import Listing
from adaptkit.data.patience import reason_of
from adaptkit.data.place import Remote, place
from adaptkit.errors import AdaptkitError, DataError

AT_ONCE = 16  # requests: what they take is mostly waiting
_DEEPEST = 64  # folders in each other, as links in a circle seem to be


@dataclass(frozen=True)
class RemoteListing(Listing):
    """Image files that URLs name, each fetched whole when it is read.

    Args:
        urls: one for each of `paths`, or a path of a file on this machine.
        stamps: what was said of each file's size and time of change; () if nothing was.
        seen: (width, height) by name, of the images that were read.
    """

    urls: Sequence[str] = field(default=(), repr=False)
    stamps: Sequence[str] = ()
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def at_once(self) -> int:
        """How many samples are best read at a time."""
        return AT_ONCE

    @property
    def forks(self) -> bool:
        """Whether other processes may read it."""
        return False

    def read(self, index: int, needed: Needed | None = None) -> Image.Image:
        """Fetch an image."""
        where = place(self.urls[index])
        if isinstance(where, Path):
            return decode(where, needed)
        file = io.BytesIO(content(where))
        if size := image_size(file):
            self.seen[self.paths[index]] = size
        file.seek(0)
        return decode(file, needed)

    def size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image; fetch it if that was not done before."""
        where, name = place(self.urls[index]), self.paths[index]
        if isinstance(where, Path):
            return image_size(where)
        if name not in self.seen:
            try:
                found = image_size(io.BytesIO(content(where)))
            except DataError:  # as `read` says
                return None
            if found is None:
                return None
            self.seen[name] = found
        return self.seen[name]

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int] | None]:
        """Return the sizes of some of the images."""
        with threads(AT_ONCE) as pool:
            return list(pool.map(self.size, indices))

    def give_up(self) -> None:
        """End all requests of this process."""
        give_up()

    def at(self, indices: Sequence[int]) -> "RemoteListing":
        """Return some of the samples, in this order."""
        found = super().at(indices)
        assert isinstance(found, RemoteListing)  # noqa: S101
        urls = [self.urls[i] for i in indices]
        return replace(found, urls=urls, stamps=self.stamps and [self.stamps[i] for i in indices])

    def state(self) -> str:
        """Return the SHA-256 of the names, of sizes and times where they are known, and so on.

        A web server's list of a folder tells names alone.
        """
        known = repr((list(map(str, self.paths)), list(self.stamps), self.labels, self.weights))
        return hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()


class _Entry(NamedTuple):
    """What a folder holds: a name below it, as it stands in a URL, and what was said of it."""

    raw: str
    is_folder: bool
    stamp: str


def find_files(root: Remote) -> RemoteListing:
    """Return the files below a folder in the order of their names; hidden ones are passed over.

    Raises:
        DataError: there is no such folder, or it cannot be listed, also not after some time.
        DependencyError: what reads the protocol is not installed.
    """
    found: dict[str, tuple[str, str]] = {}
    level = [("", root.as_folder())]

    def entries_of(level: tuple[str, Remote]) -> list[_Entry]:
        return _entries(root, level[1]) if level[0] else _top(root)

    with threads(AT_ONCE) as pool:
        for _ in range(_DEEPEST):
            contents = list(pool.map(entries_of, level))
            below = []
            for (above, folder), entries in zip(level, contents, strict=True):
                for entry in entries:
                    name = above + _name(folder, entry)
                    if entry.is_folder:
                        below.append((f"{name}/", folder.below(f"{entry.raw}/")))
                    else:
                        found[name] = folder.below(entry.raw).url, entry.stamp
            level = below
            if not level:
                break
    if level:
        raise DataError(f"{root} has folders nested more than {_DEEPEST} deep: do links go round?")
    names = sorted(found)
    stamps = [found[name][1] for name in names]
    return RemoteListing(
        root,
        [Path(name) for name in names],
        urls=[found[name][0] for name in names],
        stamps=stamps if any(stamps) else (),
    )


def files_in(root: Remote) -> dict[str, Remote]:
    """Return the files in a folder by name; none of one that holds folders too.

    Raises:
        DataError: as `find_files`.
        DependencyError: as there.
    """
    folder, entries = root.as_folder(), _top(root)
    if any(entry.is_folder for entry in entries):
        return {}
    return {_name(folder, entry): folder.below(entry.raw) for entry in entries}


def folders_in(root: Remote) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, and those of what lies beside them.

    Raises:
        DataError: as `find_files`.
        DependencyError: as there.
    """
    folder = root.as_folder()
    entries = _top(root)
    parts: tuple[list[str], list[str]] = [], []
    for entry in entries:
        parts[not entry.is_folder].append(_name(folder, entry))
    return parts


def _top(root: Remote) -> list[_Entry]:
    """Return what the folder holds that the user named; it is asked for once."""
    if "entries" not in root.held:
        root.held["entries"] = _entries(root, root.as_folder())
    found: list[_Entry] = root.held["entries"]
    return found


def _entries(root: Remote, folder: Remote) -> list[_Entry]:
    """Return what a folder holds, hidden things left out; `root` is what the user named.

    Raises:
        DataError: it cannot be listed.
        DependencyError: what reads the protocol is not installed.
    """
    try:
        server = connection(folder)
        if folder.is_web:
            page: bytes = server.ask("cat_file", folder)
            entries = _linked(folder, page.decode(errors="replace"))
        else:
            itself = server.system._strip_protocol(folder.url)
            entries = _told(itself, server.ask("ls", folder, True))
    except AdaptkitError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise DataError(f"{root} is a file: give a folder of images") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot list {folder}: {reason_of(error)}") from None
    return [entry for entry in entries if not _is_hidden(_name(folder, entry))]


def _told(path: str, infos: list[dict[str, Any]]) -> Iterator[_Entry]:
    """Yield what a file system says of a folder's content."""
    for info in infos:
        whole = str(info["name"]).rstrip("/")
        if whole != path.rstrip("/"):  # itself stands there too where it is an object
            raw = whole.rpartition("/")[2]
            yield _Entry(raw, info["type"] == "directory", stamp_in(info))


def _linked(folder: Remote, page: str) -> Iterator[_Entry]:
    """Yield what the page of a web server links to below a folder."""
    start = urlsplit(urljoin(str(folder), "."))  # as the links will be, without ".."
    links = _Links()
    links.feed(page)
    for link in dict.fromkeys(links.found):
        try:
            there = urlsplit(urljoin(str(folder), link))
        except ValueError:  # of a link that is none
            continue
        inside = there[:2] == start[:2] and there.path.startswith(start.path)
        raw = there.path.removeprefix(start.path)
        if inside and raw:
            yield _Entry(raw.rstrip("/"), raw.endswith("/"), "")


class _Links(HTMLParser):
    """Collects what a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _name(folder: Remote, entry: _Entry) -> str:
    return unquote(entry.raw, errors="surrogateescape") if folder.is_web else entry.raw


def _is_hidden(name: str) -> bool:
    return any(not part or part.startswith(".") for part in name.split("/"))
