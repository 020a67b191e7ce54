"""A trainer's dataloader, read once more beside the trainer, with batches as the trainer's."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Subset

from adaptkit.errors import EstimationError
from adaptkit.loaders import indices_of, narrowed


def as_tested(
    trainer: Any, module: nn.Module, loader: Iterable[Any], batches: float, number: int
) -> Iterable[Any]:
    """Return a loader of the samples that a trainer takes from its own, prepared as it does.

    From a DataLoader over a data set that can be indexed, samples can be drawn at random, of all
    processes' shares. Where the trainer stops early (`limit_test_batches`), they are a random
    choice of as many as it takes; of any other loader they are the first ones.

    Args:
        trainer: of Lightning.
        module: the trainer's, whose hooks prepare batches if the data module has none.
        loader: the trainer's own, or one beside them.
        batches: how many of them the trainer takes; infinity for all.
        number: of the loader among the trainer's.

    Raises:
        EstimationError: the loader can be read once only.
    """
    prepare = partial(_prepared, trainer, module, number)
    if isinstance(loader, Iterator) or isinstance(getattr(loader, "dataset", None), Iterator):
        raise EstimationError(
            "adapting reads the data before they are tested, and an iterator can be read once: "
            "give a DataLoader or a list"
        )
    if isinstance(loader, DataLoader):
        loader = _beside(loader)
        indices = indices_of(loader, seed=0)
        if indices is not None and isinstance(loader.batch_sampler, BatchSampler):
            if batches < len(loader):
                most = int(batches) * loader.batch_sampler.batch_size * trainer.world_size
                indices = random.Random(0).sample(indices, min(most, len(indices)))
            return _Indexed(loader, indices, prepare)
    return _Plain(loader, None if batches == float("inf") else int(batches), prepare)


@dataclass(frozen=True)
class _Plain:
    """The first batches of any iterable."""

    loader: Iterable[Any]
    batches: int | None
    prepare: Callable[[Any], Any]

    def __iter__(self) -> Iterator[Any]:
        return map(self.prepare, islice(self.loader, self.batches))


@dataclass(frozen=True)
class _Indexed:
    """Some samples of a DataLoader's data set, in a form that estimation can choose from."""

    loader: DataLoader[Any]
    indices: Sequence[int]
    prepare: Callable[[Any], Any]

    @property
    def dataset(self) -> Subset[Any]:
        return Subset(self.loader.dataset, self.indices)

    def subset(self, positions: Sequence[int]) -> Iterable[Any]:
        chosen = [self.indices[i] for i in positions]
        return _Plain(narrowed(self.loader, chosen, seed=0), None, self.prepare)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.subset(range(len(self.indices))))


def _beside(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return the same loader with a state of its own, and over the samples of all processes.

    The trainer is in the midst of reading `loader`: a second pass through its sampler or its
    persistent workers would end the first one.
    """
    own = copy.copy(loader)
    sampler = loader.batch_sampler
    # What Lightning puts around it to note the indices that it predicts.
    sampler = copy.deepcopy(
        getattr(sampler, "_batch_sampler", sampler), {id(loader.dataset): loader.dataset}
    )
    if type(sampler) is BatchSampler:
        _unshare(sampler.sampler)
    vars(own).update(batch_sampler=sampler, _iterator=None)  # DataLoader forbids to set the former
    return own


def _unshare(sampler: Any) -> None:
    """Make a process's share of the indices all of them."""
    if isinstance(sampler, DistributedSampler):
        sampler.num_replicas, sampler.rank = 1, 0
        sampler.num_samples = sampler.total_size = len(sampler.dataset)  # type: ignore[arg-type]


def _prepared(trainer: Any, module: nn.Module, number: int, batch: Any) -> Any:
    """Return a batch as a trainer hands it to a step: its dtype, its device, through the hooks."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = module._on_before_batch_transfer(batch, dataloader_idx=number)  # type: ignore[operator]
    return trainer.strategy.batch_to_device(batch, dataloader_idx=number)
