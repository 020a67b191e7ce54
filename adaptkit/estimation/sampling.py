"""Which of a loader's samples the statistics are taken from, and in what pieces."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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

from adaptkit.batches import inputs_of, take
from adaptkit.errors import DataError, EstimationError

MICRO_BATCH = 32  # samples; small enough to stay near the caches, large enough to fill the kernels
MOST_MICRO_BATCHES = 64  # each is a thread


@runtime_checkable
class HasSubset(Protocol):
    """A loader of a known number of samples that can be narrowed before anything is decoded."""

    dataset: Any

    def subset(self, indices: Sequence[int]) -> Iterable[Any]:
        """Return a loader of these samples in this order."""
        ...


@dataclass(frozen=True)
class Draw:
    """The batches to estimate from; `available` samples were on offer (None: unknown)."""

    batches: Iterable[Any]
    available: int | None
    random: bool


def draw(loader: Iterable[Any], samples: int | None, seed: int) -> Draw:
    """Choose `samples` of a loader's samples, or all for None.

    Where the loader's data set can be indexed, the choice is a random subset, drawn from `seed`
    before anything is decoded, and no sample is lost to `drop_last`. A plain iterable gives its
    first samples, whatever its order.
    """
    indices = _indices(loader, seed)
    if indices is None:
        return Draw(_first(loader, samples), None, random=False)
    # A random order too, so that whoever stops early (memory) still has a random subset.
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    subset = [indices[i] for i in order[:samples].tolist()]
    return Draw(_narrowed(loader, subset, seed), len(indices), random=True)


def finite(batches: Iterable[Any], on_bad: str, dropped: Callable[[int], None]) -> Iterator[Any]:
    """Leave out samples whose input holds NaN or an infinity, telling `dropped` how many.

    Raises:
        EstimationError: there is such a sample and `on_bad` is "raise".
    """
    for number, batch in enumerate(batches):
        try:
            x = inputs_of(batch)
        except DataError:  # a batch for `forward=`, of a form that is not ours to know
            yield batch
            continue
        good = x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite()
        bad = len(good) - int(good.sum())
        if bad and on_bad == "raise":
            raise EstimationError(f"batch {number} holds {bad} samples with NaN or infinity")
        if bad:
            dropped(bad)
            batch = take(batch, good)
        if bad < len(good):
            yield batch


def regroup(batches: Iterable[Tensor], *, at_once: int = 1) -> list[Tensor]:
    """Cut tensors anew into micro-batches of one size, whatever the loader's was.

    Their order is kept. Samples of unlike shapes or dtypes never share a micro-batch. The number of
    micro-batches is a multiple of `at_once`, so that as many can run together to the end.

    >>> [len(b) for b in regroup([torch.zeros(1, 3)] * 40 + [torch.zeros(1, 4)])]
    [21, 19, 1]
    >>> [len(b) for b in regroup(torch.zeros(36, 3).split(5), at_once=4)]
    [9, 9, 9, 9]
    """
    waiting = deque(batches)
    total = sum(map(len, waiting))
    rounds = max(1, -(-total // (MICRO_BATCH * at_once)))
    rounds = min(rounds, max(1, MOST_MICRO_BATCHES // at_once))
    size = -(-total // (rounds * at_once))
    groups: list[Tensor] = []
    while waiting:
        group = [waiting.popleft()]
        while waiting and sum(map(len, group)) < size and _alike(group[0], waiting[0]):
            group.append(waiting.popleft())
        whole = torch.cat(group) if len(group) > 1 else group[0]
        if len(whole) > size:
            waiting.appendleft(whole[size:])
        groups.append(whole[:size])
    return groups


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:] and a.dtype == b.dtype


def _indices(loader: Iterable[Any], seed: int) -> list[int] | None:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [int(i) for i in sampler]


def _narrowed(loader: Iterable[Any], indices: list[int], seed: int) -> Iterable[Any]:
    if isinstance(loader, HasSubset):
        return loader.subset(indices)
    assert isinstance(loader, DataLoader)  # noqa: S101  _indices gave None for all else
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


def _first(loader: Iterable[Any], samples: int | None) -> Iterator[Any]:
    seen = 0
    for batch in loader:
        try:
            size = len(inputs_of(batch))
        except DataError:
            size = 1
        if samples is not None and seen + size > samples:
            yield take(batch, torch.arange(samples - seen))
            return
        yield batch
        seen += size
        if seen == samples:
            return
