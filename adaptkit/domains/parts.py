"""A loader's images in an order that is known, so that some of them can be taken later."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from adaptkit.batches import describe, inputs_of, take
from adaptkit.errors import DataError
from adaptkit.loaders import Skips, indices_of, narrowed


@dataclass(frozen=True)
class Parts:
    """All of a loader's images, and loaders of some.

    Args:
        whole: a loader of all.
        part: from indices to a loader of these images.
        indices: of all images in the data set, in the order of `whole`; None where it is a list of
            batches, in which images count from 0 on.
    """

    whole: Iterable[Any]
    part: Callable[[list[int]], Iterable[Any]]
    indices: list[int] | None

    @classmethod
    def of(cls, loader: Iterable[Any]) -> "Parts":
        """Open a loader whose data set can be indexed, or a list of batches.

        Raises:
            DataError: it is neither: it could not be read twice in the same order.

        >>> parts = Parts.of([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])
        >>> parts.part([1, 2])
        [tensor([[2.]]), tensor([[3.]])]
        """
        indices = indices_of(loader, seed=0)
        if indices is not None:
            return cls(narrowed(loader, indices, 0), partial(_narrowed, loader), indices)
        if isinstance(loader, Sequence):
            return cls(loader, partial(_rows, loader), None)
        raise DataError(
            f"Expected a DataLoader of a data set that can be indexed, or a list of batches, as "
            f"each domain's images are read again; got {describe(loader)}"
        )

    def read(self, count: int) -> list[int]:
        """Return the indices of the images that a pass over `whole` gave, `count` of them.

        Raises:
            DataError: it gave fewer than there are, and does not say which.
        """
        if self.indices is None:
            return list(range(count))
        kept = self.whole.kept() if isinstance(self.whole, Skips) else range(len(self.indices))
        if len(kept) != count:
            raise DataError(
                f"Expected {len(kept)} images of the loader, got {count}: which ones cannot be told"
            )
        return [self.indices[position] for position in kept]


def _narrowed(loader: Iterable[Any], indices: list[int]) -> Iterable[Any]:
    return narrowed(loader, indices, 0)


def _rows(batches: Sequence[Any], indices: list[int]) -> list[Any]:
    """Return the batches with only the rows of these numbers, counted over all batches."""
    chosen, start, found = torch.tensor(indices), 0, []
    for batch in batches:
        end = start + len(inputs_of(batch))
        here = chosen[(chosen >= start) & (chosen < end)] - start
        if len(here):
            found.append(take(batch, here))
        start = end
    return found
