"""Images in tar files, in the convention of WebDataset: read where they lie, never unpacked."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaptkit.data.columns import as_weights, whole
from adaptkit.data.decode import decode, image_size
from adaptkit.data.folder import EXTENSIONS
from adaptkit.data.labels import as_indices
from adaptkit.data.listing import Listing, state_of
from adaptkit.data.place import Place, Remote, without_secrets
from adaptkit.data.tar import Member, members
from adaptkit.errors import DataError, few

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 100_000
_MOST_OPEN = 128  # files, of the 1,024 that a process often may have
_MOST_IMAGE = 2**30  # bytes of an image file
_MOST_WORDS = 2**20  # bytes of what is said of one
_HEAD = 2**18  # bytes of an image file in which its size mostly stands
_SAID = ("cls", "json")


class _Files:
    """Tar files that are read at any place by any thread, most of them opened once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}
        self._held = False

    def __reduce__(self) -> tuple[type["_Files"], tuple[Sequence[Path]]]:
        if self._held:
            raise DataError(
                "tar files from a URL are read by processes that are forked: leave out --workers"
            )
        return _Files, (self.paths,)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def hold(self) -> None:
        """Open all, so that they can be read when they have no name any more."""
        for number in range(len(self.paths)):
            self.read(number, 0, 0)
        self._held = True

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return bytes of a file."""
        descriptor = self._open.get(number)
        if descriptor is None and len(self._open) < _MOST_OPEN:
            # Without a lock, which a process forked meanwhile would find locked for ever.
            opened = os.open(self.paths[number], os.O_RDONLY)
            descriptor = self._open.setdefault(number, opened)
            if descriptor != opened:
                os.close(opened)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        with self.paths[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True, eq=False)
class ShardListing(Listing):
    """The images in tar files.

    Args:
        given: what the user named: a tar file, a folder of them, or a pattern.
        files: the tar files.
        where: shape (N, 3), int64: of each image its file, and its offset and size in it.
        reasons: why an image cannot be had, by its index.
        stamp: what is said of the size and time of change of files from elsewhere.
    """

    given: Place = Path()
    files: _Files = field(default_factory=lambda: _Files(()), repr=False)
    where: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64), repr=False)
    reasons: Mapping[int, str] = field(default_factory=dict, repr=False)
    stamp: str = ""

    @property
    def source(self) -> Place:
        """The tar file, the folder or the pattern, for messages."""
        return self.given

    def read(self, index: int, *how: Any) -> Image.Image:
        """Return an image; `how` is of `decode`."""
        return decode(io.BytesIO(self._content(index)), *how)

    def size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image as it is stored; None where there is none."""
        try:
            return image_size(io.BytesIO(self._content(index, _HEAD))) or image_size(
                io.BytesIO(self._content(index))
            )
        except DataError:
            return None

    def at(self, indices: Sequence[int]) -> "ShardListing":
        """Return some of the images, in this order."""
        found = super().at(indices)
        assert isinstance(found, ShardListing)  # noqa: S101
        reasons = {n: self.reasons[i] for n, i in enumerate(indices) if i in self.reasons}
        return replace(found, where=self.where[list(indices)], reasons=reasons)

    def contents(self) -> str:
        """Return the SHA-256 of where the images lie."""
        return hashlib.sha256(self.where.tobytes()).hexdigest()

    def state(self) -> str:
        """Return the SHA-256 of the files' sizes and times of change, and of what is known."""
        digest = hashlib.sha256(repr((self.labels, self.weights)).encode())
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0")
        digest.update(self.where.tobytes() + self.stamp.encode())
        for number in sorted(set(self.where[:, 0].tolist())):
            digest.update(state_of(self.files.paths[number]))
        return digest.hexdigest()

    def _content(self, index: int, most: int | None = None) -> bytes:
        if index in self.reasons:
            raise DataError(self.reasons[index])
        number, offset, size = self.where[index].tolist()
        wanted = size if most is None else min(size, most)
        try:
            found = self.files.read(number, offset, wanted)
        except OSError as error:
            raise DataError(f"cannot read the tar file: {error.strerror}") from None
        if len(found) < wanted:
            raise DataError("the tar file has become shorter")
        return found


def is_sharded(path: Path) -> bool:
    """Whether a path is of tar files: of one, of a pattern, or of a folder with nothing else in it.

    Beside tar files a folder may hold files that are no images.
    """
    name = path.name.lower()
    if _RANGE.search(str(path)) and not path.exists():
        return True
    if path.is_file():
        return name.endswith(SUFFIXES)
    found = False
    if path.is_dir():
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or entry.name.lower().endswith(EXTENSIONS):
                    return False
                found = found or entry.name.lower().endswith(SUFFIXES)
    return found


def list_shards(
    path: Place, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> ShardListing:
    """Return the images in tar files, and what stands there of each, by the files' headers alone.

    Members of a tar file whose names are alike up to the first point behind the last slash are one
    sample: ``a/7.jpg`` its image, ``a/7.cls`` its label, a name or a number as text, ``a/7.json``
    perhaps an object with a "label", a "domain", a "weight". Where no sample has a label and every
    image's folder is named like one of `classes`, that is its label. Nothing is ever unpacked.

    What cannot be an image's content, as a link, a device, a member that is cut off or that stands
    there twice, is listed as an image that cannot be read.

    Args:
        path: a tar file, a folder of them, or a pattern like ``shard-{000..012}.tar``. Those at a
            URL (no folder) are fetched whole, into temporary files without a name.
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a file is missing, compressed, or no tar file; there are no images; or what is
            said of them does not fit.

    >>> import tarfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(f"{folder}/a.tar", "w") as archive:
    ...         for name, content in (("7.png", b"..."), ("7.cls", b"1")):
    ...             member = tarfile.TarInfo(name)
    ...             member.size = len(content)
    ...             archive.addfile(member, io.BytesIO(content))
    ...     found = list_shards(Path(folder, "a.tar"), outputs=2)
    >>> [str(path) for path in found.paths], found.labels
    (['a.tar/7.png'], [1])
    """
    if isinstance(path, Path):
        paths = _expanded(path)
        root = path if path.is_dir() else path.parent
        shards = [_named(file, root) for file in paths]
        return _list(path, root, _Files(paths), shards, classes, outputs)
    from adaptkit.data.remote import fetched, stamp_of

    places = [Remote(url) for url in _each(path.url)]
    if len(places) > _MOST_OPEN:
        raise DataError(
            f"{path}: expected at most {_MOST_OPEN} tar files at URLs, got {len(places):,}"
        )
    shards = [str(where).removeprefix(f"{path.parent}/") for where in places]
    with fetched(places) as copies:
        files = _Files(copies)
        listing = _list(path, path.parent, files, shards, classes, outputs)
        files.hold()
    return replace(listing, stamp=" ".join(map(stamp_of, places)))


def _list(
    path: Place,
    root: Place,
    files: _Files,
    shards: Sequence[str],
    classes: Sequence[str] | None,
    outputs: int | None,
) -> ShardListing:
    samples: list[_Sample] = []
    ends: list[str] = []
    for number, shard in enumerate(shards):
        found, ended = _samples(files, number, shard)
        samples += found
        ends += [] if ended else [shard.rpartition("/")[2]]
    if not samples:
        raise DataError(f"{path} holds no images ({', '.join(EXTENSIONS)})")
    labels, names, note = _labels(samples, path, classes, outputs)
    domains = _every(samples, "domain", path)
    weights = _every(samples, "weight", path)
    cut = f"{few(ends)}: without the mark that ends a tar file, so perhaps cut off." if ends else ""
    where = [(s.file, s.image.offset, s.image.size) for s in samples]
    return ShardListing(
        root=root,
        paths=[Path(s.name) for s in samples],
        labels=labels,
        classes=names,
        note=" ".join(filter(None, (note, cut))),
        domains=domains,
        weights=_numbers(weights, path) if weights else None,
        given=path,
        files=files,
        where=np.array(where, dtype=np.int64),
        reasons={i: s.image.reason for i, s in enumerate(samples) if s.image.reason},
    )


class _Sample(NamedTuple):
    """An image, and what stands beside it: of `_SAID`, and of JSON."""

    file: int
    name: str
    image: Member
    said: Mapping[str, str]


def _expanded(path: Path) -> list[Path]:
    """Return the tar files that a path stands for.

    >>> [file.name for file in _expanded(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        every = (p for p in path.iterdir() if p.name.lower().endswith(SUFFIXES))
        return sorted(p for p in every if not p.name.startswith("."))
    return [Path(text) for text in _each(str(path))]


def _each(pattern: str) -> list[str]:
    """Return what a pattern stands for."""
    found = [pattern]
    while match := _RANGE.search(found[0]):
        first, last = match[1], match[2]
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) * len(found) <= _MOST_FILES:
            most = f"1 to {_MOST_FILES:,} files"
            raise DataError(f"{without_secrets(pattern)}: expected {most}, got {len(numbers):,}")
        width = len(first) if first.startswith("0") else 0
        found = [_RANGE.sub(f"{n:0{width}}", text, count=1) for text in found for n in numbers]
    return found


def _named(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _samples(files: _Files, number: int, shard: str) -> tuple[list[_Sample], bool]:
    """Return the samples in a tar file, in the order of their images, and whether it has an end."""
    parts: dict[str, list[Member]] = {}
    ended = True
    for member in members(files.paths[number]):
        if not member.name:
            ended = False
            continue
        steps = [step for step in member.name.split("/") if step not in ("", ".")]
        if any(step.startswith(".") and step != ".." for step in steps):
            continue  # hidden, as what macOS adds for each file
        member = member._replace(name="/".join(steps))
        key, extension = _key(member.name)
        if extension in _SAID or f".{extension.rpartition('.')[2]}" in EXTENSIONS:
            parts.setdefault(key, []).append(member)
    found = []
    for key, some in parts.items():
        said = _said(files, number, some)
        for image, name in _images(key, some):
            found.append(_Sample(number, f"{shard}/{name}", image, said))
    return found, ended


def _key(name: str) -> tuple[str, str]:
    """Part a member's name at the first point behind the last slash.

    >>> _key("a.b/7.seg.png")
    ('a.b/7', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _images(key: str, some: Sequence[Member]) -> Iterator[tuple[Member, str]]:
    """Yield a sample's image, and the name of each member that should be one; the first is it.

    Where an extension is an image's alone, as in 7.jpg, those of more than one point, as 7.seg.png,
    are something else of the sample.
    """
    every = [m for m in some if f".{_key(m.name)[1].rpartition('.')[2]}" in EXTENSIONS]
    plain = [m for m in every if "." not in _key(m.name)[1]] or every
    for place, member in enumerate(plain):
        reason, name = member.reason, member.name
        if place:
            reason = f"another image of {key}, which has {_key(plain[0].name)[1]} already"
            name = f"{name}#{place + 1}"
        elif member.size > _MOST_IMAGE and not reason:
            reason = "larger than 1 GiB"
        yield member._replace(reason=reason), name


def _said(files: _Files, number: int, some: Sequence[Member]) -> dict[str, str]:
    """Return what the members beside an image say of it; of what cannot be read nothing."""
    found: dict[str, str] = {}
    for member in some:
        extension = _key(member.name)[1]
        if extension not in _SAID or member.reason or member.size > _MOST_WORDS:
            continue
        try:
            text = files.read(number, member.offset, member.size).decode("utf-8").strip()
            told = json.loads(text) if extension == "json" else {"label": text}
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            known = {k: v for k, v in told.items() if k in ("label", "domain", "weight")}
            found |= {k: str(v) for k, v in known.items() if isinstance(v, (str, int, float))}
    return found


def _labels(
    samples: Sequence[_Sample], path: Place, classes: Sequence[str] | None, outputs: int | None
) -> tuple[list[int] | None, list[str] | None, str]:
    values = [sample.said.get("label", "") for sample in samples]
    if not any(values):
        folders = [PurePosixPath(sample.name).parent.name for sample in samples]
        if not classes or not set(folders) <= set(classes):
            return None, None, ""
        values = folders
    return as_indices(whole(values), path, classes=classes, outputs=outputs)


def _every(samples: Sequence[_Sample], what: str, path: Place) -> list[str] | None:
    """Return what every sample says of itself, None where none does."""
    values = [sample.said.get(what, "") for sample in samples]
    if not any(values):
        return None
    if "" in values:
        raise DataError(f"{path}: {samples[values.index('')].name} has no {what}, and others have")
    return values


def _numbers(values: Sequence[str], path: Place) -> list[float]:
    try:
        return as_weights(np.array(values, dtype=np.float64), path)
    except ValueError:
        raise DataError(f"{path}: expected weights that are numbers") from None
