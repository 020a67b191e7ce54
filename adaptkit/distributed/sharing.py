"""Which of a loader's samples fall to which process: each to exactly one."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from adaptkit.distributed.world import World
from adaptkit.errors import AdaptkitError, DataError, DistributedError
from adaptkit.loaders import HasSubset, Named, Skips, indices_of, narrowed

_LOOKED_AT = 8  # samples beside the first that show whether two data sets are the same


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
        last, are equal; otherwise each process's loader holds samples of its own.
        """
        if world.size == 1:
            held = indices_of(loader, seed)
            return cls(None if held is None else [len(held)], True, held)
        every = world.together(lambda: _Look.at(loader, seed))
        here = every[world.rank]
        sampled = all(look.sampled is not None for look in every)
        if sampled and len({look.digest for look in every}) > 1:
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
        same = len({(look.count, look.digest) for look in every}) == 1
        return cls(counts, same, here.chosen)

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
        count: of samples; None where it cannot be known.
        digest: of a few of them.
        chosen: their indices, where a sampler of somebody else's chose them.
        sampled: the indices that a DistributedSampler gives this process, all for torch's own.
    """

    count: int | None = None
    digest: str = ""
    chosen: Sequence[int] | None = None
    sampled: Sequence[int] | None = None

    @classmethod
    def at(cls, loader: Iterable[Any], seed: int) -> "_Look":
        """Look at a loader of this process."""
        sampler = _distributed(loader)
        if sampler is not None:
            data: Any = loader.dataset  # type: ignore[attr-defined]
            torchs = type(sampler) is DistributedSampler
            digest = digest_of(loader, range(len(data)))
            sampled = range(len(data)) if torchs else [int(i) for i in sampler]
            return cls(digest=digest, sampled=sampled)
        indices = indices_of(loader, seed)
        if indices is None:
            return cls()
        every = range(len(indices))
        chosen = every if indices == list(every) else indices
        return cls(len(indices), digest_of(loader, indices), chosen)


def _distributed(loader: Iterable[Any]) -> Any:
    """Return a loader's DistributedSampler, torch's own or one derived from it; None without."""
    if not isinstance(loader, DataLoader) or isinstance(loader, HasSubset):
        return None
    if type(loader.batch_sampler) is not BatchSampler:  # which batches by some rule of its own
        return None
    samplers = (loader.batch_sampler.sampler, loader.sampler)
    return next((s for s in samplers if isinstance(s, DistributedSampler)), None)


def digest_of(loader: Any, indices: Sequence[int]) -> str:
    """Return a digest of a loader's indices, and of its samples' names, or of some samples."""
    last = len(indices) - 1
    few = (
        sorted({indices[last * i // _LOOKED_AT] for i in range(_LOOKED_AT + 1)}) if indices else []
    )
    digest = hashlib.sha256(np.asarray(indices, dtype=np.int64).tobytes())
    if isinstance(loader, Named):  # an image that one machine cannot read is still the same one
        digest.update("\0".join(loader.names()).encode(errors="surrogateescape"))
        return digest.hexdigest()
    with _seeded():
        for index in few:
            try:
                for leaf in tree_leaves(loader.dataset[index]):
                    digest.update(_bytes(leaf))
            except (AdaptkitError, OSError, RuntimeError, ValueError) as error:
                digest.update(str(error).encode())  # whoever reads it will say so
    return digest.hexdigest()


def _bytes(leaf: Any) -> bytes:
    """Return what tells a piece of a sample from another."""
    if isinstance(leaf, torch.Tensor):
        array = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str((leaf.dtype, leaf.shape)).encode() + array.numpy().tobytes()
    if isinstance(leaf, np.ndarray):
        return str((leaf.dtype, leaf.shape)).encode() + np.ascontiguousarray(leaf).tobytes()
    if hasattr(leaf, "tobytes"):  # an image of PIL
        return bytes(leaf.tobytes())
    if leaf is None or isinstance(leaf, (str, int, float, complex, bytes, PurePath)):
        return repr(leaf).encode()
    return os.urandom(16)  # of a kind that cannot be compared: not the same, as far as is known


@contextmanager
def _seeded() -> Iterator[None]:
    """Let samples that are changed at random come out alike; afterwards all is as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
