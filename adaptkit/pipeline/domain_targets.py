"""The domains of a target: the folders in a folder, or what a column of a file says."""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptkit.data import ImageLoader, Listing, Place, Remote, is_file
from adaptkit.data.cache import PixelCache
from adaptkit.data.chained import chained
from adaptkit.data.shards import is_sharded
from adaptkit.errors import DataError, few, shown

_LONGEST_NAME = 200  # bytes of a domain's, to which endings are added


@dataclass(frozen=True)
class Listed:
    """What is known of a domain's samples before any is read.

    Args:
        state: of its files (see `Listing.state`).
        count: how many there are.
        weightless: which of them count for nothing in the statistics.
    """

    state: str
    count: int
    weightless: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Keys(Sequence[Hashable]):
    """What tells a domain's images from all others, whenever its folder is listed."""

    domain: str
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:
        return self.domain, self.paths[number]


@dataclass(frozen=True)
class DomainTargets:
    """Domains, each of which can be opened as a target by itself.

    What was decoded of a domain for all as one is kept for the domain itself.

    Args:
        target: that holds all of them.
        names: sorted.
        opened: gives the loader of a target.
        pixels: that were decoded.
        as_one: the loader of all, where the target is a file; None where it is a folder.
        members: the places of each domain's samples among those.
    """

    target: Place
    names: Sequence[str]
    opened: Callable[[Place], ImageLoader]
    pixels: PixelCache
    as_one: ImageLoader | None = None
    members: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of_column(
        cls, target: Place, opened: Callable[[Place], ImageLoader], pixels: PixelCache
    ) -> "DomainTargets":
        """Take the domains that a file says its samples are of.

        Raises:
            DataError: what is wrong with it; it says of none, or a domain's name cannot be that of
                a file.
        """
        as_one = opened(target)
        members = _members(target, as_one.listing)
        return cls(target, sorted(members), opened, pixels, as_one, members)

    def loader(self, name: str) -> ImageLoader:
        """Return the loader of one domain.

        Raises:
            DataError: what is wrong with its folder.
        """
        if self.as_one is None:
            folder = self.target / name
            found = self.opened(folder if isinstance(folder, Path) else folder.as_folder())
            return found.of(found.listing, self.pixels, _Keys(name, found.listing.paths))
        members = self.members[name]
        return self.as_one.of(self.as_one.listing.at(members).alone(), self.pixels, members)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of each sample, where they are ready for the model; None of images."""
        return None if self.as_one is None else self.as_one.listing.shape

    def listed(self, name: str) -> Listed:
        """Return what is known of a domain's samples before any is read.

        Raises:
            DataError: what is wrong with its folder.
        """
        listing = self.loader(name).listing
        weightless = {i for i, weight in enumerate(listing.weights or ()) if not weight}
        return Listed(listing.state(), len(listing), frozenset(weightless))

    def pooled(self, places: Mapping[str, Sequence[int]]) -> ImageLoader:
        """Return the loader of some samples of several domains as of one, without labels.

        Args:
            places: of the samples within each domain.

        Raises:
            DataError: what is wrong with a domain's folder.
        """
        if self.as_one is not None:
            chosen = [self.members[name][i] for name, some in places.items() for i in some]
            listing = replace(
                self.as_one.listing.at(chosen), labels=None, classes=None, partly=None
            )
            return self.as_one.of(listing, self.pixels, chosen)
        parts: dict[str, Listing] = {}
        for name, some in places.items():
            loader = self.loader(name)
            parts[name] = loader.listing.at(some)
        keys = [key for name, part in parts.items() for key in _Keys(name, part.paths)]
        return loader.of(chained(self.target, parts), self.pixels, keys)


def are_in_one(target: Place) -> bool:
    """Whether a target's samples lie in one file, or in tar files, and not in a folder a domain."""
    try:
        return is_file(target) or is_sharded(target)
    except (OSError, ValueError):  # which `folders_in` names
        return False


def folders_in(target: Place) -> tuple[list[str], list[str]]:
    """Return the names of a folder's folders, and a note on what lies beside them.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if isinstance(target, Remote):
        from adaptkit.data import remote

        names, beside = remote.folders_in(target)
    else:
        names, beside = _folders_in(target)
    if not names:
        raise DataError(f"{target} holds no folders: expected one for each domain")
    files = f"{len(beside):,} file{'' if len(beside) == 1 else 's'}"
    note = f"{files} beside the domains' folders passed over: {few(sorted(beside))}."
    return sorted(names), [note] if beside else []


def _folders_in(target: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    beside: list[str] = []
    try:
        with os.scandir(target) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (names if entry.is_dir() else beside).append(entry.name)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(f"there is no folder {target}") from None
    except OSError as error:
        raise DataError(f"cannot read the folder {target}: {error.strerror}") from None
    return names, beside


def _members(target: Place, listing: Listing) -> dict[str, list[int]]:
    if listing.domains is None:
        raise DataError(
            f"{target} says of no sample which domain it is of: name a column 'domain', or give a "
            f"folder of folders"
        )
    found: dict[str, list[int]] = {}
    for place, name in enumerate(listing.domains):
        found.setdefault(name, []).append(place)
    for name in found:
        if not _can_be_a_file(name):
            raise DataError(f"{target}: domain {shown(name)} cannot be the name of a file")
    return found


def _can_be_a_file(name: str) -> bool:
    r"""Whether a pack may have a name, and would be seen by whoever looks for it.

    >>> [_can_be_a_file(name) for name in ("camera 7", "", ".hidden", "a/b", "a\0b", "\ud800")]
    [True, False, False, False, False, False]
    """
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    visible = Path(name).name == name and not name.startswith(".") and "\0" not in name
    return visible and 0 < length <= _LONGEST_NAME
