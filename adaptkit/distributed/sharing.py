"""Which of a loader's samples fall to which process: each to exactly one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Sampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from adaptkit.distributed.likeness import Likeness, likeness
from adaptkit.distributed.world import World
from adaptkit.errors import DataError, DistributedError
from adaptkit.loaders import HasSubset, Skips, indices_of, narrowed


@dataclass(frozen=True)
class Whole:
    """What all processes' loaders hold together.

    Args:
        counts: how many samples each process's loader holds; None where one cannot tell.
        same: whether they are the same ones, and not each process's own.
        indices: of the samples in this process's data set; None where it cannot be indexed.
    """

    counts: list[int] | None
    same: bool
    indices: Sequence[int] | None

    @classmethod
    def of(cls, loader: Iterable[Any], seed: int, world: World) -> "Whole":
        """Look at a loader, in a world of several processes together with them.

        A DistributedSampler stands for its whole data set, without what it repeats or drops. Two
        data sets count as the same if they are as long and nine samples, from the first to the
        last, are equal; otherwise each process's loader holds samples of its own. Of one data set
        that samplers of the user's own choose from, what the first process's draws is dealt out, if
        it is weighted or all draw the same in any order; what no two of them choose is each one's
        own.

        Raises:
            DistributedError: it cannot be told what is to count once, of samplers that choose some
                of the same samples, or of samples that are otherwise whenever they are read.
        """
        if world.size == 1:
            held = indices_of(loader, seed)
            return cls(None if held is None else [len(held)], True, held)
        every = world.together(lambda: _Look.at(loader, seed))
        here = every[world.rank]
        sampled = all(look.sampled is not None for look in every)
        if sampled and len({look.like.digest for look in every}) > 1:
            raise DistributedError(
                "the processes' samplers are distributed ones, over data sets that are not the "
                "same: give each process a plain loader of its own data"
            )
        if sampled:
            dealt = [look.sampled or () for look in every]
            alike = all(part == dealt[0] for part in dealt)
            indices = dealt[0] if alike else sorted({i for part in dealt for i in part})
            return cls([len(indices)] * world.size, True, indices)
        counts = [look.count for look in every if look.count is not None]
        if len(counts) < world.size:
            return cls(None, False, None)
        if len({look.like.digest for look in every}) > 1:
            return cls(counts, False, here.chosen)
        if not all(look.like.sure for look in every):
            raise DistributedError(
                "cannot tell whether the processes' data sets are the same one, as samples come "
                "out otherwise each time they are read: give each process a DistributedSampler "
                "over the one, or an iterator over its own"
            )
        whole = _chosen([look.chosen or () for look in every], weighted=every[0].weighted)
        if whole is None:
            return cls(counts, False, here.chosen)
        return cls([len(whole)] * world.size, True, whole)

    @property
    def total(self) -> int | None:
        """How many samples there are."""
        if self.counts is None:
            return None
        return self.counts[0] if self.same else sum(self.counts)


@dataclass(frozen=True)
class Share:
    """A process's part of a pass over a loader.

    Args:
        loader: of the samples that fall to this process.
        places: of each in the whole; None where they stand one after the other, process by process.
    """

    loader: Iterable[Any]
    places: Sequence[int] | None
    world: World

    @classmethod
    def of(cls, loader: Iterable[Any], world: World) -> "Share":
        """Deal out a loader's samples; in a world of one, the loader as it is."""
        if world.size == 1:
            return cls(loader, None, world)
        whole = Whole.of(loader, 0, world)
        if not whole.same or whole.indices is None:
            return cls(loader, None, world)
        places = range(world.rank, len(whole.indices), world.size)
        return cls(narrowed(loader, [whole.indices[i] for i in places], 0), places, world)

    def __iter__(self) -> Iterator[Any]:
        return self.world.watched(iter(self.loader))

    def merged(self, own: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return arrays of one row a sample as all processes found them, in the order of the whole.

        Also tells each process what images the others could not read.

        Args:
            own: what this process found; empty where it had no sample.

        Raises:
            DataError: some samples have an array that others lack.
        """
        if self.world.size == 1:
            return dict(own)
        skipped = getattr(self.loader, "skipped", None)
        every = self.world.gather((dict(own), self._kept(), skipped))
        if isinstance(skipped, dict):
            for _, __, theirs in every:
                skipped.update(theirs or {})
        parts = [(found, kept) for found, kept, _ in every if found]
        names = dict.fromkeys(name for found, _ in parts for name in found)
        for name in names:
            if not all(name in found for found, _ in parts):
                raise DataError(f"the samples of some processes have {name} and others have none")
        order = _order([kept for _, kept in parts])
        whole = {name: np.concatenate([found[name] for found, _ in parts]) for name in names}
        return {
            name: rows if order is None or len(order) != len(rows) else rows[order]
            for name, rows in whole.items()
        }

    def _kept(self) -> list[int] | None:
        """Return the places of the samples that the pass gave."""
        if self.places is None:
            return None
        if isinstance(self.loader, Skips):
            return [self.places[position] for position in self.loader.kept()]
        return list(self.places)


def _order(places: list[list[int] | None]) -> NDArray[np.intp] | None:
    """Return what sorts the rows of all processes by their places in the whole."""
    known = [np.asarray(some) for some in places if some is not None]
    if not known or len(known) < len(places):
        return None
    return np.argsort(np.concatenate(known), kind="stable")


@dataclass(frozen=True)
class _Look:
    """What a process tells the others of its loader.

    Args:
        like: of its data set.
        count: of samples; None where it cannot be known.
        chosen: their indices; None as before.
        sampled: the indices that a DistributedSampler gives this process, all for torch's own.
        weighted: whether they are drawn by torch's WeightedRandomSampler.
    """

    like: Likeness
    count: int | None = None
    chosen: Sequence[int] | None = None
    sampled: Sequence[int] | None = None
    weighted: bool = False

    @classmethod
    def at(cls, loader: Iterable[Any], seed: int) -> "_Look":
        """Look at a loader of this process."""
        samplers = _samplers(loader)
        sampler = next((s for s in samplers if isinstance(s, DistributedSampler)), None)
        if sampler is not None:
            data: Any = loader.dataset  # type: ignore[attr-defined]
            torchs = type(sampler) is DistributedSampler
            like = likeness(loader, range(len(data)))
            sampled = range(len(data)) if torchs else [int(i) for i in sampler]
            return cls(like, sampled=sampled)
        indices = indices_of(loader, seed)
        if indices is None:
            return cls(Likeness(""))
        every = range(len(loader.dataset))  # type: ignore[attr-defined]
        return cls(
            likeness(loader, every),
            len(indices),
            every if indices == list(every) else indices,
            weighted=any(isinstance(s, WeightedRandomSampler) for s in samplers),
        )


def _samplers(loader: Iterable[Any]) -> list[Sampler[Any] | Iterable[Any]]:
    """Return the samplers that may choose a loader's samples, one by one."""
    if not isinstance(loader, DataLoader) or isinstance(loader, HasSubset):
        return []
    if type(loader.batch_sampler) is not BatchSampler:  # which batches by some rule of its own
        return []
    return [loader.batch_sampler.sampler, loader.sampler]


def _chosen(choices: Sequence[Sequence[int]], *, weighted: bool) -> Sequence[int] | None:
    """Return what processes choose of one data set together; None if each has a part of its own.

    >>> _chosen([[0, 2, 4], [1, 3, 0]], weighted=False)  # the last one is there to fill up
    [0, 1, 2, 3, 4]
    """
    first = choices[0]
    if weighted or all(choice == first or sorted(choice) == sorted(first) for choice in choices):
        return first
    union = set().union(*choices)
    twice = sum(len(set(choice)) for choice in choices) - len(union)
    if not twice:
        return None
    if twice < len(choices):  # as samplers repeat some to give all as many
        return sorted(union)
    raise DistributedError(
        f"the processes' samplers choose {twice} of the same samples of one data set: seed them "
        f"alike, so that all draw the same, or give each process a DistributedSampler"
    )
