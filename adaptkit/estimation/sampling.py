"""Which of a loader's samples the statistics are taken from, and in what pieces."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptkit.batches import inputs_of, take
from adaptkit.distributed import ALONE, Whole, World
from adaptkit.errors import DataError, EstimationError
from adaptkit.loaders import Weighs, narrowed, weight_of


@dataclass(frozen=True)
class Draw:
    """The batches to estimate from.

    Args:
        batches: of this process.
        most: how many samples they hold at most; None if that cannot be known.
        available: how many samples were on offer in all processes; None if that cannot be known.
        random: whether they are a random subset of those.
    """

    batches: Iterable[Any]
    most: int | None
    available: int | None
    random: bool


def draw(
    loader: Iterable[Any],
    samples: int | None,
    seed: int,
    world: World = ALONE,
    weight: Callable[[Any], Tensor] | None = None,
) -> Draw:
    """Choose `samples` of a loader's samples, or all for None.

    Where the loader's data set can be indexed, the choice is a random subset, drawn from `seed`
    before anything is decoded, and no sample is lost to `drop_last`. A plain iterable gives its
    first samples, whatever its order.

    Of several processes with the same data set (see `Whole`) each gets its part of the choice that
    one would make; of those with data of their own the choice is among all. Each plain iterable
    gives its share of `samples`.

    Where `weight` is the loader's own, samples that weigh 0 are not among those to choose from.

    Raises:
        EstimationError: all samples weigh 0.
    """
    own = weight is not None and weight is weight_of(loader)
    if own and isinstance(loader, Weighs):
        loader = loader.weighing()
    whole = Whole.of(loader, seed, world)
    if whole.counts is None or whole.indices is None or whole.total is None:
        part = None if samples is None else world.part(samples)
        return Draw(_first(loader, part), part, None, random=False)
    if own and not whole.total:
        raise EstimationError("there is no data to estimate from: all samples weigh 0")
    # A random order too, so that whoever stops early (memory) still has a random subset.
    order = torch.randperm(whole.total, generator=torch.Generator().manual_seed(seed))[:samples]
    if whole.same:
        mine = order[world.rank :: world.size]
    else:
        start = sum(whole.counts[: world.rank])
        mine = order[(order >= start) & (order < start + whole.counts[world.rank])] - start
    subset = [whole.indices[i] for i in mine.tolist()]
    return Draw(narrowed(loader, subset, seed), len(subset), whole.total, random=True)


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


def regroup(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut tensors anew into micro-batches of `size` samples, whatever the loader's size was.

    Their order is kept. Samples of unlike shapes or dtypes never share a micro-batch.

    >>> [len(b) for b in regroup([torch.zeros(1, 3)] * 40 + [torch.zeros(1, 4)], 32)]
    [32, 8, 1]
    """
    group: list[Tensor] = []
    room = size
    for batch in batches:
        if group and not _alike(group[0], batch):
            yield _joined(group)
            group, room = [], size
        cuts = [room, *range(room + size, len(batch), size)] if room < len(batch) else []
        for piece in batch.tensor_split(cuts):
            group.append(piece)
            room -= len(piece)
            if not room:
                yield _joined(group)
                group, room = [], size
    if group:
        yield _joined(group)


def _joined(group: list[Tensor]) -> Tensor:
    return torch.cat(group) if len(group) > 1 else group[0]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:] and a.dtype == b.dtype


def _first(loader: Iterable[Any], samples: int | None) -> Iterator[Any]:
    if samples == 0:
        return
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
