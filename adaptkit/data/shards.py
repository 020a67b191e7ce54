"""Images in tar files, in the convention of WebDataset: read where they lie, never unpacked."""

import hashlib
import io
import os
import re
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaptkit.data.columns import as_weights
from adaptkit.data.decode import Needed, decode, image_size
from adaptkit.data.folder import EXTENSIONS
from adaptkit.data.labels import NONE, Found, as_indices
from adaptkit.data.listing import Listing, state_of
from adaptkit.data.open_files import MOST_OPEN, OpenFiles
from adaptkit.data.place import Place, Remote, without_secrets
from adaptkit.data.unpacking import decompressed
from adaptkit.data.webdataset import KNOWN, Sample, samples
from adaptkit.errors import DataError, few

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 100_000
_HEAD = 2**18  # bytes of an image file in which its size mostly stands


class _Names(Sequence[Path]):
    """Names of images, as paths only while they are looked at: a million of those take 400 MB."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: Any) -> Any:
        found = self.texts[number]
        return _Names(found) if isinstance(number, slice) else Path(found)


@dataclass(frozen=True, eq=False)
class ShardListing(Listing):
    """The images in tar files.

    Args:
        files: the tar files.
        where: shape (N, 3), int64: of each image its file, and its offset and size in it.
        reasons: why an image cannot be had, by its index.
        stamp: what is said of the size and time of change of files from elsewhere.
    """

    files: OpenFiles = field(default_factory=lambda: OpenFiles(()), repr=False)
    where: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64), repr=False)
    reasons: Mapping[int, str] = field(default_factory=dict, repr=False)
    stamp: str = ""

    def read(self, index: int, needed: Needed | None = None) -> Image.Image:
        """Return an image."""
        return decode(io.BytesIO(self._content(index)), needed)

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
        return replace(
            found,
            paths=_Names([str(path) for path in found.paths]),
            where=self.where[list(indices)],
            reasons={n: self.reasons[i] for n, i in enumerate(indices) if i in self.reasons},
        )

    @property
    def forks(self) -> bool:
        """Whether other processes may read it."""
        return not self.files.held

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


def is_sharded(path: Place) -> bool:
    """Whether a place is of tar files: of one, a pattern, or a folder with nothing else in it.

    Beside tar files a folder may hold files that are no images.

    Raises:
        DataError: a folder at a URL cannot be listed.
        DependencyError: what reads the protocol is not installed.
    """
    name = path.name.lower()
    if isinstance(path, Remote):
        return _are_named(path) or bool(_tars_in(path))
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


def _are_named(where: Remote) -> bool:
    """Whether a URL is that of a tar file, or a pattern of such."""
    return bool(where.suffix) and where.name.lower().endswith(SUFFIXES)


def _tars_in(folder: Remote) -> list[Remote]:
    """Return the tar files in a folder at a URL that `is_sharded`, in the order of their names."""
    from adaptkit.data.remote import files_in

    found = files_in(folder)
    if any(name.lower().endswith(EXTENSIONS) for name in found):
        return []
    return [found[name] for name in sorted(found) if name.lower().endswith(SUFFIXES)]


def list_shards(
    path: Place, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> ShardListing:
    """Return the images in tar files, and what stands there of each, by the files' headers alone.

    Members of a tar file whose names are alike up to the first point behind the last slash are one
    sample: ``a/7.jpg`` its image, ``a/7.cls`` its label, a name or a number as text, ``a/7.json``
    perhaps an object with a "label", a "domain", a "weight". Where no sample has a label and every
    image's folder is named like one of `classes`, that is its label. Nothing is ever unpacked; what
    gzip, bzip2 or xz compressed is decompressed once, into a temporary file without a name.

    What cannot be an image's content, as a link, a device, a member that is cut off or that stands
    there twice, is listed as an image that cannot be read.

    Args:
        path: a tar file, a folder of them, or a pattern like ``shard-{000..012}.tar``. Those at a
            URL are fetched whole, into temporary files without a name.
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a file is missing or no tar file; there is no room to decompress one; there are
            no images; or what is said of them does not fit.

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
        shards = [
            file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
            for file in paths
        ]
        return _list(path, root, OpenFiles(paths), shards, classes, outputs)
    from adaptkit.data.connections import fetched, stamp_of

    one = _are_named(path)
    places = [Remote(url) for url in _each(path.url)] if one else _tars_in(path)
    folder = path.parent if one else path.as_folder()
    if len(places) > MOST_OPEN:
        raise DataError(
            f"{path}: expected at most {MOST_OPEN} tar files at URLs, got {len(places):,}"
        )
    shards = [str(where).removeprefix(f"{str(folder).rstrip('/')}/") for where in places]
    with fetched(places) as copies:
        files = OpenFiles(copies)
        listing = _list(path, folder, files, shards, classes, outputs)
        files.hold()
    return replace(listing, stamp=" ".join(map(stamp_of, places)))


def _list(
    path: Place,
    root: Place,
    files: OpenFiles,
    shards: Sequence[str],
    classes: Sequence[str] | None,
    outputs: int | None,
) -> ShardListing:
    names: list[str] = []
    where = array("q")
    said: dict[str, list[str]] = {what: [] for what in KNOWN}
    reasons: dict[int, str] = {}
    cut: list[str] = []
    for number, shard in enumerate(shards):
        for sample in _samples(files, number):
            if not sample.name:
                cut.append(shard)
                continue
            if sample.image.reason:
                reasons[len(names)] = sample.image.reason
            names.append(f"{shard}/{sample.name}")
            where.extend((number, sample.image.offset, sample.image.size))
            for what, values in said.items():
                values.append(sys.intern(sample.said.get(what, "")))
    if not names:
        raise DataError(f"{path} holds no images ({', '.join(EXTENSIONS)})")
    found = _labels(said["label"], names, path, classes, outputs)
    domains, weights = (_every(said[what], what, names, path) for what in ("domain", "weight"))
    end = f"{few(cut)}: without the mark that ends a tar file, so perhaps cut off." if cut else ""
    return ShardListing(
        root=root,
        paths=_Names(names),
        labels=found.labels,
        classes=found.classes,
        partly=found.partly,
        note=" ".join(filter(None, (found.note, end))),
        domains=domains,
        weights=_numbers(weights, path) if weights else None,
        given=path,
        files=files,
        where=np.array(where, dtype=np.int64).reshape(-1, 3),
        reasons=reasons,
    )


def _samples(files: OpenFiles, number: int) -> Iterator[Sample]:
    """Yield the samples in one of the files, which is then read decompressed."""
    path = files.paths[number]
    with decompressed(path) or nullcontext() as content:
        if content is not None:
            files.take(number, content)
        yield from samples(path, content)


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


def _labels(
    values: Sequence[str],
    names: Sequence[str],
    path: Place,
    classes: Sequence[str] | None,
    outputs: int | None,
) -> Found:
    if not any(values):
        folders = [PurePosixPath(name).parent.name for name in names] if classes else []
        if not classes or not set(folders) <= set(classes):
            return NONE
        values = folders
    return as_indices(list(values), path, classes=classes, outputs=outputs)


def _every(
    values: Sequence[str], what: str, names: Sequence[str], path: Place
) -> Sequence[str] | None:
    """Return what every sample says of itself, None where none does."""
    if not any(values):
        return None
    if "" in values:
        raise DataError(f"{path}: {names[values.index('')]} has no {what}, and others have")
    return values


def _numbers(values: Sequence[str], path: Place) -> list[float]:
    try:
        return as_weights(np.array(values, dtype=np.float64), path)
    except ValueError:
        raise DataError(f"{path}: expected weights that are numbers") from None
