"""What lies behind URLs, by fsspec: found, read, and tried again where a network fails."""

import asyncio
import errno
import hashlib
import io
import os
import random
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import fsspec  # which torch brings
from fsspec.asyn import AsyncFileSystem
from fsspec.registry import known_implementations
from PIL import Image

from adaptkit.data.decode import Needed, decode, image_size
from adaptkit.data.listing import Listing
from adaptkit.data.place import Remote, place, without_secrets
from adaptkit.errors import AdaptkitError, DataError, DependencyError, Stopped

T = TypeVar("T")

AT_ONCE = 16  # requests: what they take is mostly waiting
_FILES_AT_ONCE = 4  # large ones
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try, more or less
CONNECTING, SILENT, LONGEST = 10.0, 30.0, 300.0  # seconds: until there is an answer, without a
# byte, and for all of an image
_MOST_ASKED = 30.0  # seconds that a server may ask to wait
_DEEPEST = 64  # folders in each other, as links in a circle seem to be
_LATER = (408, 425, 429)  # besides those from 500 on, codes of what may work soon
_LASTING = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC)
_STAMPS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")


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
        with _threads(AT_ONCE) as pool:
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
    with _threads(AT_ONCE) as pool:
        for _ in range(_DEEPEST):
            contents = list(pool.map(lambda folder: _entries(root, folder[1]), level))
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


def folders_in(root: Remote) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, and those of what lies beside them.

    Raises:
        DataError: as `find_files`.
        DependencyError: as there.
    """
    folder = root.as_folder()
    entries = _entries(root, folder)
    parts: tuple[list[str], list[str]] = [], []
    for entry in entries:
        parts[not entry.is_folder].append(_name(folder, entry))
    return parts


def content(where: Remote) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: it cannot be read, also not after some time. The message is the reason alone.
    """
    try:
        files = _filesystem(where)
        path = files._strip_protocol(where.url)
        found: bytes = _patiently(lambda: _ask(files, "_cat_file", path))
    except FileNotFoundError:
        raise DataError("not there any more") from None
    except AdaptkitError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(_reason(error)) from None
    return found


def read_file(where: Remote, reader: Callable[[Path], T]) -> T:
    """Fetch a file and return what a reader of files makes of it.

    The file is a temporary one, gone when the reader is done but for what it has mapped of it. What
    it found is kept in `where`.

    Raises:
        DataError: it cannot be fetched, also not after some time, or what the reader says.
        DependencyError: what reads the protocol is not installed.
    """
    kept = f"{reader.__module__}.{reader.__qualname__}"
    if kept not in where.held:
        with fetched([where]) as (file,):
            where.held[kept] = reader(file)
    found: T = where.held[kept]
    return found


def stamp_of(where: Remote) -> str:
    """Return what is said of a file's size and time of change; "" if nothing is."""
    try:
        files = _filesystem(where)
        path = files._strip_protocol(where.url)
        return _stamp(_patiently(lambda: files.info(path)))
    except Exception:  # noqa: BLE001  the reader will say what is wrong
        return ""


@contextmanager
def fetched(places: Sequence[Remote]) -> Iterator[list[Path]]:
    """Fetch files for the time of a block; what is said of them there is said of their URLs.

    Raises:
        DataError: one cannot be fetched, also not after some time.
        DependencyError: what reads the protocol is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        files = [Path(folder, f"{n}{where.suffix.lower()}") for n, where in enumerate(places)]
        with _threads(_FILES_AT_ONCE) as pool:
            list(pool.map(_fetch, places, files))
        try:
            yield files
        except AdaptkitError as error:
            text = str(error)
            for file, where in zip(files, places, strict=True):
                text = text.replace(str(file), str(where))
            raise type(error)(text) from None


def _fetch(where: Remote, file: Path) -> None:
    try:
        files = _filesystem(where)
        path = files._strip_protocol(where.url)
        # However long it takes, if only something comes: it may be large.
        _patiently(lambda: _ask(files, "_get_file", path, str(file), seconds=None))
    except AdaptkitError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no {where}") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot fetch {where}: {_reason(error)}") from None


_filesystems: dict[tuple[int, str, str], Any] = {}


def _filesystem(where: Remote) -> Any:
    """Return what reads a protocol, one for all threads of this process.

    A forked process needs its own: the thread that did the work stayed behind.

    Raises:
        DependencyError: it is not installed.
        DataError: no such protocol is known, or it does not work with this URL.
    """
    protocol = where.protocol
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise DependencyError(f"{where}: {_missing(protocol, error)}") from None
    except ValueError:
        raise DataError(
            f"{where}: no protocol {protocol!r} is known: expected one of fsspec's, such as https, "
            f"s3 or gs"
        ) from None
    try:
        options = kind._get_kwargs_from_urls(where.url)
        key = (os.getpid(), protocol, repr(options))
        if key not in _filesystems:
            if protocol in ("http", "https"):
                options = {**options, "client_kwargs": _patience()}
            _filesystems[key] = kind(**options, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise DependencyError(f"{where}: {_missing(protocol, error)}") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot open {where}: {_reason(error)}") from None
    return _filesystems[key]


def _patience() -> dict[str, Any]:
    """Return how long to wait for a web server, and that proxies are those of the environment."""
    from aiohttp import ClientTimeout

    times = ClientTimeout(total=None, sock_connect=CONNECTING, sock_read=SILENT)
    return {"timeout": times, "trust_env": True}


def _missing(protocol: str, error: ImportError) -> str:
    package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
    if protocol in ("http", "https"):
        package = '"adaptkit[remote]"'
    elif package == "fsspec":
        return f"{error}"
    return f"{protocol}:// needs another package: pip install {package}"


def _entries(root: Remote, folder: Remote) -> list[_Entry]:
    """Return what a folder holds, hidden things left out; `root` is what the user named.

    Raises:
        DataError: it cannot be listed.
        DependencyError: what reads the protocol is not installed.
    """
    try:
        files = _filesystem(folder)
        path = files._strip_protocol(folder.url)
        if folder.is_web:
            page: bytes = _patiently(lambda: _ask(files, "_cat_file", path))
            entries = _linked(folder, page.decode(errors="replace"))
        else:
            entries = _told(path, _patiently(lambda: _ask(files, "_ls", path, detail=True)))
    except AdaptkitError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise DataError(f"{root} is a file: give a folder of images") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot list {folder}: {_reason(error)}") from None
    return [entry for entry in entries if not _is_hidden(_name(folder, entry))]


def _told(path: str, infos: list[dict[str, Any]]) -> Iterator[_Entry]:
    """Yield what a file system says of a folder's content."""
    for info in infos:
        whole = str(info["name"]).rstrip("/")
        if whole != path.rstrip("/"):  # itself stands there too where it is an object
            raw = whole.rpartition("/")[2]
            yield _Entry(raw, info["type"] == "directory", _stamp(info))


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


def _stamp(info: dict[str, Any]) -> str:
    return " ".join(f"{info[key]}" for key in _STAMPS if info.get(key) is not None)


_under_way: set[Future[Any]] = set()
_given_up = 0  # how often


def give_up() -> None:
    """End all requests of this process, and try none of them again: somebody pressed Ctrl-C."""
    global _given_up
    _given_up += 1
    for request in list(_under_way):
        request.cancel()


def _ask(files: Any, name: str, *args: Any, seconds: float | None = LONGEST, **kwargs: Any) -> Any:
    """Call a method of a file system, for as long as it may take."""
    if not isinstance(files, AsyncFileSystem):
        return getattr(files, name.removeprefix("_"))(*args, **kwargs)
    work = asyncio.wait_for(getattr(files, name)(*args, **kwargs), seconds)
    request = asyncio.run_coroutine_threadsafe(work, files.loop)
    _under_way.add(request)
    try:
        return request.result()
    except CancelledError:
        raise DataError("given up") from None
    finally:
        _under_way.discard(request)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Return threads that are not waited for long where a user ends the run."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except (KeyboardInterrupt, Stopped):
        pool.shutdown(wait=False, cancel_futures=True)
        give_up()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_chance = random.Random()  # of its own, so that nobody's draws depend on a network
_failed = 0  # things in a row that could not be had, with all patience


def _patiently(work: Callable[[], T]) -> T:
    """Do what may fail for a while only, again and again, for about ten seconds in all.

    Where nothing works any more each thing is tried once, so that a run comes to its end.
    """
    global _failed  # a count that may be out by a few where threads meet
    waits = iter(WAITS if _failed < AT_ONCE else ())
    before = _given_up
    while True:
        try:
            found = work()
        except Exception as error:
            passes = _passes(error)
            wait = next(waits, None) if passes and _given_up == before else None
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


def _reason(error: Exception) -> str:
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
