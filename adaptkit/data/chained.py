"""Several listings as one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from adaptkit.data.decode import Needed
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place


@dataclass(frozen=True, eq=False)
class ChainedListing(Listing):
    """The samples of several listings one after the other, each read as its own listing does.

    Args:
        parts: the listings.
        where: of each sample the number of its listing, and its index in that.
    """

    parts: Sequence[Listing] = ()
    where: Sequence[tuple[int, int]] = ()

    def read(self, index: int, needed: Needed | None = None) -> Image.Image | Tensor:
        """Return a sample."""
        part, number = self.where[index]
        return self.parts[part].read(number, needed)

    def size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image as it is stored; None where there is none."""
        part, number = self.where[index]
        return self.parts[part].size(number)

    def at(self, indices: Sequence[int]) -> "ChainedListing":
        """Return some of the samples, in this order."""
        found = super().at(indices)
        assert isinstance(found, ChainedListing)  # noqa: S101
        return replace(found, where=[self.where[i] for i in indices])

    def contents(self) -> str:
        """Return what tells the samples from others of the same names."""
        return self._digest([part.contents() for part in self.parts])

    def state(self) -> str:
        """Return the SHA-256 of what is known of the samples."""
        return self._digest([part.state() for part in self.parts])

    @property
    def at_once(self) -> int:
        """How many samples are best read at a time."""
        return max((part.at_once for part in self.parts), default=1)

    @property
    def forks(self) -> bool:
        """Whether other processes may read it."""
        return all(part.forks for part in self.parts)

    def give_up(self) -> None:
        """End what other threads are reading."""
        for part in self.parts:
            part.give_up()

    def _digest(self, parts: Sequence[str]) -> str:
        return hashlib.sha256(repr((parts, list(self.where))).encode()).hexdigest()


def chained(root: Place, parts: Mapping[str, Listing]) -> ChainedListing:
    """Return the samples of several folders in one as one listing, without labels.

    Args:
        root: the folder that holds the others.
        parts: the folders' listings, by their names; all of samples of one shape.
    """
    listings = list(parts.values())
    return ChainedListing(
        root,
        [Path(name, path) for name, listing in parts.items() for path in listing.paths],
        shape=listings[0].shape if listings else None,
        parts=listings,
        where=[(n, i) for n, listing in enumerate(listings) for i in range(len(listing))],
    )
