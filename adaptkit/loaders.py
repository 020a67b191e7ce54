"""What samples a loader holds, and loaders of some of them, before anything is decoded."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)


@runtime_checkable
class HasSubset(Protocol):
    """A loader of a known number of samples that can be narrowed before anything is decoded."""

    dataset: Any

    def subset(self, indices: Sequence[int]) -> Iterable[Any]:
        """Return a loader of these samples in this order."""
        ...


@runtime_checkable
class Skips(Protocol):
    """A loader that leaves out samples that cannot be read."""

    def kept(self) -> list[int]:
        """Return the positions in it of the samples that it yielded, after a pass."""
        ...


@runtime_checkable
class Counts(Protocol):
    """A loader that says of how many samples each batch was made, those left out included."""

    def counted(self) -> Iterator[tuple[int, Any]]:
        """Yield these numbers and batches; None for a batch of which nothing was left."""
        ...


def can_count(loader: Iterable[Any]) -> bool:
    """Whether `counted` knows of how many samples each of a loader's batches is made."""
    plain = isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler
    return plain or isinstance(loader, Counts)


def counted(loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield what `Counts` is about, of a loader that `narrowed` gave and that `can_count`.

    >>> list(counted(DataLoader([1, 2, 3], batch_size=2)))  # type: ignore[arg-type]
    [(2, tensor([1, 2])), (1, tensor([3]))]
    """
    if isinstance(loader, Counts):
        yield from loader.counted()
        return
    assert isinstance(loader, DataLoader)  # noqa: S101  for all else can_count said no
    assert isinstance(loader.batch_sampler, BatchSampler)  # noqa: S101
    total, size = len(loader.dataset), loader.batch_sampler.batch_size  # type: ignore[arg-type]
    for start, batch in zip(range(0, total, size), loader, strict=True):
        yield min(size, total - start), batch


@runtime_checkable
class Named(Protocol):
    """A loader whose samples can be told apart without reading them."""

    def names(self) -> list[str]:
        """Return what tells its samples from another loader's, in its order."""
        ...


@runtime_checkable
class Weighs(Protocol):
    """A loader that may say how much each sample counts."""

    @property
    def weight(self) -> Callable[[Any], Tensor] | None:
        """What gives a batch's weights, shape (N,); None where all count alike."""
        ...

    def weighing(self) -> Iterable[Any]:
        """Return a loader of the samples whose weight is not 0."""
        ...


def weight_of(loader: Iterable[Any]) -> Callable[[Any], Tensor] | None:
    """Return what gives a loader's own weights, if it has any."""
    return loader.weight if isinstance(loader, Weighs) and isinstance(loader, HasSubset) else None


def indices_of(loader: Iterable[Any], seed: int) -> list[int] | None:
    """Return the indices of a loader's samples in its data set; None where it has none to be had.

    Of a loader that shuffles they are in the data set's order; a sampler of the user's own draws
    them from `seed`.

    >>> indices_of(DataLoader(range(3), shuffle=True), 0)  # type: ignore[arg-type]
    [0, 1, 2]
    """
    if isinstance(loader, HasSubset):
        return list(range(len(loader.dataset)))
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or type(loader.batch_sampler) is not BatchSampler
    ):
        return None
    sampler = (
        loader.batch_sampler.sampler
    )  # a loader made with batch_sampler= has another as its own
    if isinstance(sampler, (SequentialSampler, RandomSampler)):
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    with seeded(seed):
        return [int(i) for i in sampler]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what is drawn at random within come of a seed; afterwards all is as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def narrowed(loader: Iterable[Any], indices: list[int], seed: int) -> Iterable[Any]:
    """Return a loader of the samples at some of the indices that `indices_of` gave, in this order.

    Args:
        loader: for which `indices_of` is not None.
        indices: in its data set.
        seed: of what its workers draw.
    """
    if isinstance(loader, HasSubset):
        return loader.subset(indices)
    assert isinstance(loader, DataLoader)  # noqa: S101  indices_of gave None for all else
    assert isinstance(loader.batch_sampler, BatchSampler)  # noqa: S101
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "num_workers": loader.num_workers,
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": loader.worker_init_fn,
            "timeout": loader.timeout,
        }
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=loader.batch_sampler.batch_size,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=torch.Generator().manual_seed(seed),
        **workers,
    )
