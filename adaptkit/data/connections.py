"""Files behind URLs, by fsspec: their bytes, or copies for a moment."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import fsspec  # which torch brings
from fsspec.asyn import AsyncFileSystem
from fsspec.registry import known_implementations

from adaptkit.data import patience
from adaptkit.data.patience import patiently, reason_of
from adaptkit.data.place import Remote
from adaptkit.errors import AdaptkitError, DataError, DependencyError, Stopped

T = TypeVar("T")

# Seconds: until there is a connection, without a byte, and for all of one answer.
CONNECTING, SILENT, LONGEST = 10.0, 30.0, 300.0
_FILES_AT_ONCE = 4  # large ones
_STAMPS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")

_under_way: set[Future[Any]] = set()


@dataclass(frozen=True)
class Connection:
    """What reads a protocol; any thread may ask it.

    Args:
        system: of fsspec.
        turn: of who asks one that can answer one at a time.
    """

    system: Any
    turn: Lock = field(default_factory=Lock)

    def ask(self, name: str, where: Remote, *args: Any, seconds: float | None = LONGEST) -> Any:
        """Call a method, patiently; `seconds` is how long one answer may take."""
        path = self.system._strip_protocol(where.url)  # as fsspec's own functions do
        return patiently(lambda: self._ask(name, path, *args, seconds=seconds))

    def _ask(self, name: str, *args: Any, seconds: float | None) -> Any:
        if not isinstance(self.system, AsyncFileSystem):
            with self.turn:
                return getattr(self.system, name)(*args)
        work = asyncio.wait_for(getattr(self.system, f"_{name}")(*args), seconds)
        request = asyncio.run_coroutine_threadsafe(work, self.system.loop)
        _under_way.add(request)
        try:
            return request.result()
        except CancelledError:
            raise DataError("given up") from None
        finally:
            _under_way.discard(request)


def give_up() -> None:
    """End all requests of this process, and try none of them again: somebody pressed Ctrl-C."""
    patience.stop()
    for request in list(_under_way):
        request.cancel()


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
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


def content(where: Remote) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: it cannot be read, also not after some time. The message is the reason alone.
    """
    try:
        found: bytes = connection(where).ask("cat_file", where)
    except FileNotFoundError:
        raise DataError("not there any more") from None
    except AdaptkitError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(reason_of(error)) from None
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
        return stamp_in(connection(where).ask("info", where))
    except Exception:  # noqa: BLE001  the reader will say what is wrong
        return ""


def stamp_in(info: dict[str, Any]) -> str:
    """Return what is said of a file's size and time of change in what fsspec says of it."""
    return " ".join(f"{info[key]}" for key in _STAMPS if info.get(key) is not None)


@contextmanager
def fetched(places: Sequence[Remote]) -> Iterator[list[Path]]:
    """Fetch files for the time of a block; what is said of them there is said of their URLs.

    Raises:
        DataError: one cannot be fetched, also not after some time.
        DependencyError: what reads the protocol is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as folder:
        files = [Path(folder, f"{n}{where.suffix.lower()}") for n, where in enumerate(places)]
        with threads(_FILES_AT_ONCE) as pool:
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
        # However long it takes, if only something comes: it may be large.
        connection(where).ask("get_file", where, str(file), seconds=None)
    except AdaptkitError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no {where}") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot fetch {where}: {reason_of(error)}") from None


_connections: dict[tuple[int, str, str], Connection] = {}


def connection(where: Remote) -> Connection:
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
        if key not in _connections:
            if protocol in ("http", "https"):
                options = {**options, "client_kwargs": _client()}
            system = kind(**options, skip_instance_cache=True, use_listings_cache=False)
            _connections[key] = Connection(system)
    except ImportError as error:
        raise DependencyError(f"{where}: {_missing(protocol, error)}") from None
    except Exception as error:  # noqa: BLE001  each file system raises its own
        raise DataError(f"cannot open {where}: {reason_of(error)}") from None
    return _connections[key]


def _client() -> dict[str, Any]:
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
