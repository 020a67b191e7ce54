"""Where in the order that its samples were drawn in a pass is, and how it enters there again."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from adaptkit.errors import EstimationError
from adaptkit.estimation.sample import size_of
from adaptkit.loaders import can_count, counted, indices_of, narrowed


class Place(NamedTuple):
    """A place in a drawn order. It lies before a batch, so that nothing depends on batches' sizes.

    Args:
        items: of the order that lie before that batch, those that could not be read included.
        rows: good samples of it, and of those that follow, that are used up.
        dropped: samples before it that were not finite.
    """

    items: int = 0
    rows: int = 0
    dropped: int = 0


class Track:
    """Reads a loader from a place on, and says where a pass is that has used up so many samples.

    Args:
        loader: of samples in the order drawn; see `check_enterable`.
        seed: of what its workers draw.
        dropped: how many samples were not finite, batch by batch: kept by who cleans the batches.
        start: where to begin. The first `start.rows` good samples are for the caller to pass over.
    """

    def __init__(self, loader: Iterable[Any], seed: int, dropped: list[int], start: Place) -> None:
        places = indices_of(loader, seed) or []
        self._left = narrowed(loader, list(range(start.items, len(places))), seed)
        self._dropped = dropped
        self._dropped.append(start.dropped)
        self._items, self._good, self._used = start.items, 0, start.rows
        self._ends = deque([(0, start._replace(rows=0))])

    def raw(self) -> Iterator[Any]:
        """Yield the loader's batches."""
        for items, batch in counted(self._left):
            self._items += items
            if batch is not None:
                yield batch

    def noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield these batches, which are what is left of `raw` without bad samples."""
        for batch in batches:
            self._good += size_of(batch)
            self._ends.append((self._good, Place(self._items, 0, sum(self._dropped))))
            yield batch

    def after(self, count: int) -> Place:
        """Return the place after `count` more good samples."""
        self._used += count
        while len(self._ends) > 1 and self._ends[1][0] <= self._used:
            self._ends.popleft()
        good, begin = self._ends[0]
        rows = self._used - good
        if rows and len(self._ends) > 1:
            last, end = self._ends[1]
            if last - good == end.items - begin.items:  # none was left out: rows are items
                return begin._replace(items=begin.items + rows)
        return begin._replace(rows=rows)


def check_enterable(loader: Iterable[Any], seed: int) -> None:
    """Raise EstimationError unless a pass over a loader can begin in its middle."""
    if indices_of(loader, seed) is None or not can_count(loader):
        raise EstimationError(
            "Expected resume with data that can be entered in the middle, a folder of images or a "
            "DataLoader over a data set with a length, got a stream"
        )
