"""The domains of a target: the folders in a folder, or what a column of a file says."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from adaptkit.data import ImageLoader, Listing
from adaptkit.data.decode import Needed
from adaptkit.data.shards import is_sharded
from adaptkit.errors import DataError, few, shown

_LONGEST_NAME = 200  # bytes of a domain's, to which endings are added


@dataclass(frozen=True)
class Listed:
    """What is known of a domain's samples before any is read.

    Args:
        state: of its files (see `Listing.state`).
        count: how many there are.
    """

    state: str
    count: int


@dataclass(frozen=True)
class DomainTargets:
    """Domains, each of which can be opened as a target by itself.

    Args:
        target: that holds all of them.
        names: sorted.
        opened: gives the loader of a target.
        as_one: the loader of all, where the target is a file; None where it is a folder.
        members: the places of each domain's samples among those.
    """

    target: Path
    names: Sequence[str]
    opened: Callable[[Path], ImageLoader]
    as_one: ImageLoader | None = None
    members: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of_column(cls, target: Path, opened: Callable[[Path], ImageLoader]) -> "DomainTargets":
        """Take the domains that a file says its samples are of.

        Raises:
            DataError: what is wrong with it; it says of none, or a domain's name cannot be that of
                a file.
        """
        as_one = opened(target)
        members = _members(target, as_one.listing)
        return cls(target, sorted(members), opened, as_one, members)

    def loader(self, name: str) -> ImageLoader:
        """Return the loader of one domain.

        Raises:
            DataError: what is wrong with its folder.
        """
        if self.as_one is None:
            return self.opened(self.target / name)
        return self.as_one.of(self.as_one.listing.at(self.members[name]))

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
        return Listed(listing.state(), len(listing))

    def pooled(self, places: Mapping[str, Sequence[int]]) -> ImageLoader:
        """Return the loader of some samples of several domains as of one, without labels.

        Args:
            places: of the samples within each domain.

        Raises:
            DataError: what is wrong with a domain's folder.
        """
        if self.as_one is not None:
            chosen = [self.members[name][i] for name, some in places.items() for i in some]
            listing = self.as_one.listing.at(chosen)
            return self.as_one.of(replace(listing, labels=None, classes=None))
        parts: list[Listing] = []
        for name, some in places.items():
            loader = self.loader(name)
            parts.append(loader.listing.at(some))
        return loader.of(_Joined.of(self.target, dict(zip(places, parts, strict=True))))


@dataclass(frozen=True)
class _Joined(Listing):
    """Listings of whatever kind as one, without labels.

    Args:
        parts: the listings.
        where: of each sample its listing, and its index in that.
    """

    parts: Sequence[Listing] = ()
    where: Sequence[tuple[int, int]] = ()

    @classmethod
    def of(cls, root: Path, parts: Mapping[str, Listing]) -> "_Joined":
        """Join listings by name."""
        paths = [Path(name, path) for name, part in parts.items() for path in part.paths]
        where = [(k, i) for k, part in enumerate(parts.values()) for i in range(len(part))]
        return cls(root, paths, parts=list(parts.values()), where=where)

    def read(self, index: int, needed: Needed | None = None) -> Image.Image | Tensor:
        """Return a sample."""
        part, place = self.where[index]
        return self.parts[part].read(place, needed)

    def at(self, indices: Sequence[int]) -> "_Joined":
        """Return some of the samples, in this order."""
        found = super().at(indices)
        assert isinstance(found, _Joined)  # noqa: S101
        return replace(found, where=[self.where[i] for i in indices])


def are_in_one(target: Path) -> bool:
    """Whether a target's samples lie in one file, or in tar files, and not in a folder a domain."""
    try:
        return target.is_file() or is_sharded(target)
    except (OSError, ValueError):  # which `folders_in` names
        return False


def folders_in(target: Path) -> tuple[list[str], list[str]]:
    """Return the names of a folder's folders, and a note on what lies beside them.

    Raises:
        DataError: there is none, or it cannot be read.
    """
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
    if not names:
        raise DataError(f"{target} holds no folders: expected one for each domain")
    files = f"{len(beside):,} file{'' if len(beside) == 1 else 's'}"
    note = f"{files} beside the domains' folders passed over: {few(sorted(beside))}."
    return sorted(names), [note] if beside else []


def _members(target: Path, listing: Listing) -> dict[str, list[int]]:
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
