"""Where data lies: a path on this machine, or a URL."""

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from adaptkit.errors import DataError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::")
_HERE, _WEB = ("file", "local"), ("http", "https")
_USER = re.compile(r"(://)(?:[^/?@\s]*|[^/?@:\s]*:[^?@\s]*)@")  # a password may hold a slash
_QUERY = re.compile(r"[?#][^\s'\")]*")
_SIGNED = re.compile(r"\?[^\s'\")]*=[^\s'\")]*")  # where a question mark may be part of a name


@dataclass(frozen=True)
class Remote:
    """A place that a URL names; as text without what may be secret in it: user, password, query.

    Args:
        url: whole, of any protocol that fsspec knows.
        held: what was read of it, so that one run fetches it once.

    >>> images = Remote("https://me:secret@host/a%20b/?token=x")
    >>> print(images, images.name)
    https://host/a%20b/ a b
    >>> (images / "c d.png").url
    'https://me:secret@host/a%20b/c%20d.png?token=x'
    """

    url: str = field(repr=False)
    held: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the URL as it may be shown."""
        if self.is_web:
            return without_secrets(self.url)
        return _SIGNED.sub("", _USER.sub(r"\1", self.url))

    def __truediv__(self, name: str | PurePath) -> "Remote":
        """Return the place of what is called so, seen from this folder."""
        folder = self
        below = posixpath.normpath(name.as_posix() if isinstance(name, PurePath) else name)
        while below.startswith("../"):
            below, folder = below[3:], folder.parent
        return folder.below(quote(below, errors="surrogateescape") if self.is_web else below)

    def below(self, raw: str) -> "Remote":
        """Return the place of what stands so in a URL below that of this folder."""
        folder, query = self._parts()
        return Remote(f"{folder.rstrip('/')}/{raw}{query}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what was read."""
        return {"url": self.url, "held": {}}

    @property
    def protocol(self) -> str:
        """What stands before "://", in small letters."""
        return self.url.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        """Whether it is a web server's: some letters stand for others, and a query may follow."""
        return self.protocol in _WEB

    @property
    def name(self) -> str:
        """The last part of the path."""
        name = self._parts()[0].rstrip("/").rpartition("/")[2]
        return unquote(name, errors="surrogateescape") if self.is_web else name

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot; "" of what ends in a slash, a folder."""
        return "" if self._parts()[0].endswith("/") else PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Remote":
        """The folder that it is in."""
        path, query = self._parts()
        return Remote(_above(path.rstrip("/")) + query)

    def as_folder(self) -> "Remote":
        """Return the place with a slash at the end of its path."""
        return self.below("")

    def _parts(self) -> tuple[str, str]:
        """Return what stands before a query, and the query."""
        if not self.is_web:  # where a question mark is a letter as others are
            return self.url, ""
        path, mark, query = self.url.partition("#")[0].partition("?")
        return path, mark + query


Place = Path | Remote


def place(where: str | Place) -> Place:
    """Return a path of what lies on this machine, and a `Remote` of a URL.

    >>> place("images"), place("file:///images"), str(place("s3://bucket/images"))
    (PosixPath('images'), PosixPath('/images'), 's3://bucket/images')
    """
    if isinstance(where, Remote):
        return where
    if not str(where):
        raise DataError("expected a path or a URL, got nothing: give . for this folder")
    if _CHAINED.match(str(where)):
        raise DataError("URLs through another protocol (a::b://...) are not supported")
    if not is_url(where):
        return Path(where)
    found = Remote(str(where))
    return Path(unquote(found.url.partition("://")[2])) if found.protocol in _HERE else found


def is_url(where: object) -> bool:
    """Whether this is text that names a protocol, as s3://bucket/images does."""
    return isinstance(where, str) and _URL.match(where) is not None


def without_secrets(text: str) -> str:
    """Return text, such as an error's, with no user, password, or query in the URLs in it.

    >>> without_secrets("404 at 'https://me:secret@host/a.png?X-Amz-Signature=0123'")
    "404 at 'https://host/a.png'"
    """
    return _QUERY.sub("", _USER.sub(r"\1", text)) if "://" in text else text


def _above(folder: str) -> str:
    """Return a URL without its last part, but for what names the host or bucket."""
    start, slash, _ = folder.rpartition("/")
    return start if slash and not start.endswith(":/") else folder
