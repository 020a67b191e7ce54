"""A sample in memory, on which a model is tried with one set of statistics after another."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Forward, call
from adaptkit.distributed import World, world
from adaptkit.errors import EstimationError
from adaptkit.estimation.agreement import agree
from adaptkit.estimation.lockstep import Settle, as_found, lockstep
from adaptkit.estimation.precision import Precision
from adaptkit.estimation.run import Engine, Progress, checked, no_data, pieces, prepared
from adaptkit.estimation.sample import Sample, Weight
from adaptkit.estimation.sampling import draw, finite
from adaptkit.estimation.statistics import Statistics
from adaptkit.features import NoFeaturesError, Tap
from adaptkit.loaders import weight_of
from adaptkit.moments import Moments

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What one run of a trial showed.

    Args:
        plain: the moments of each layer's input, in the order in which the layers are passed.
        settled: layer name -> the mean and variance that it normalised by, each (C,).
        outputs: what the model gave, a micro-batch each.
        features: shape (N, D), float32, the pooled features (see `adaptkit.features`); None where
            the model has no layer to take them at.
    """

    plain: Statistics
    settled: dict[str, tuple[Tensor, Tensor]]
    outputs: list[Any]
    features: NDArray[np.float32] | None

    @property
    def statistics(self) -> Statistics:
        """What an adapted model would store."""
        return self.plain.corrected(lambda name, _: self.settled[name])


class Trial:
    """Runs a model over one sample as often as wanted, each time with other statistics.

    As `estimate` does, in one forward each, but to the end, and with what comes out. The data is
    read once; the model is left as it was after every run. In a job of several processes each reads
    its part of the sample and holds all of it: a run needs no other process.

    Args:
        model: with layers that store data-set statistics.
        loader: as for `estimate`, like all that follow.
        keep: what is kept of the model's output for a batch; by default all of it.

    Raises:
        EstimationError: no layer stores statistics, there is no data, or memory allows none.

    >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    >>> trial = Trial(net, [torch.tensor([[1.0], [3.0]])])
    >>> trial.run().settled["0"][0].item(), trial.run(trial.source).settled["0"][0].item()
    (2.0, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        samples: int | Literal["all"] | None = None,
        prior: float = 0,
        memory: int | None = None,
        layers: norms.Select = None,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
        forward: Forward | None = None,
        weight: Weight | None = None,
        on_bad: Literal["skip", "raise"] = "skip",
        seed: int = 0,
        progress: Progress | None = None,
        keep: Callable[[Any], Any] | None = None,
    ) -> None:
        together = world()
        weight = weight or weight_of(loader)
        with together.united():
            wanted = self._wanted = checked(samples=samples, on_bad=on_bad, prior=prior)
            self.model, self.layers, self._where = prepared(model, layers, device)
        alike = {"samples": samples, "prior": prior, "seed": seed, "on_bad": on_bad}
        agree(together, self.model, self.layers, alike | {"precision": precision})
        self.stored = {name: norms.read(layer) for name, layer in self.layers.items()}
        self._forward, self.prior, self._keep = forward or call, prior, keep
        self._known: dict[Hashable, Any] = {}
        chosen = draw(loader, wanted, seed, together, weight)
        dropped: list[int] = []
        self._sample = Sample(
            together.watched(
                pieces(finite(chosen.batches, on_bad, dropped.append), self._where, forward, weight)
            ),
            tensors=forward is None,
        )
        self._engine = Engine(
            self.model, self.layers, self._forward, memory, self._where, precision, None, 0, None
        )
        share = self._room(together, dropped)
        most = share if chosen.most is None else min(share, chosen.most)
        with together.united():
            self._sample.grow(
                most, lambda count: progress and progress("reading", count, chosen.most)
            )
        if together.size > 1:
            self._sample = self._sample.of_all(together, self._where)
        self._available, self._random = chosen.available, chosen.random
        self._dropped = sum(together.gather(sum(dropped)))
        self._limited = any(together.gather(chosen.most is not None and share < chosen.most))

    def _room(self, together: World, dropped: list[int]) -> int:
        """Return how many samples of its own this process may hold.

        Each holds those of all: the choice that is made on them then needs no other process.
        """
        engine = replace(self._engine, world=together)
        with norms.evaluating(self.model), heap.kept(self._where):
            with together.united():
                self._sample.grow(1)
            counts = together.gather((self._sample.count, sum(dropped)))
            if not any(count for count, _ in counts):
                raise EstimationError(no_data(sum(bad for _, bad in counts)))
            _, limit = engine.look(self._sample)
        self._engine.rows = engine.rows
        return together.part(limit)

    def __len__(self) -> int:
        return self._sample.count

    def covers(self, samples: int | Literal["all"] | None) -> bool:
        """Whether its sample is what `estimate` would draw of the loader for so many."""
        wanted = checked(samples=samples)
        if self._limited:
            return False
        if wanted == self._wanted:
            return True
        least = min((n for n in (wanted, self._wanted) if n is not None), default=0)
        return self._available is not None and self._available <= least

    @property
    def batches(self) -> Sequence[Any]:
        """The sample, as the model takes it."""
        return self._sample.micro_batches(self._engine.rows)

    def once(self, key: Hashable, run: Callable[[], T]) -> T:
        """Return what `run` gives, or gave when it was first asked for under this key."""
        if key not in self._known:
            self._known[key] = run()
        found: T = self._known[key]
        return found

    def source(self, name: str, _: Moments) -> tuple[Tensor, Tensor]:
        """Settle a layer on what it stores: a run of the model as it is."""
        return self.stored[name].mean, self.stored[name].variance

    def run(self, settle: Settle | None = None, *, weight: Tensor | None = None) -> Seen:
        """Run the model over the sample.

        Args:
            settle: gives the mean and variance that a layer normalises by, of its name and
                moments; by default they are the moments' own, as in `estimate`.
            weight: shape (N,), of the samples in the moments, of which only the ratios matter;
                times those that the trial was made with.

        Raises:
            EstimationError: as `estimate`.
        """
        batches = self.batches
        own = self._sample.weights()
        if own is not None:
            weight = own if weight is None else own * weight.to(own)
        outputs: dict[int, Any] = {}
        settled: dict[str, tuple[Tensor, Tensor]] = {}

        def forward(model: nn.Module, batch: Any) -> None:
            output = self._forward(model, batch)
            outputs[id(batch)] = output if self._keep is None else self._keep(output)

        def noted(name: str, moments: Moments) -> tuple[Tensor, Tensor]:
            found = (settle or as_found)(name, moments)
            share = len(self) / (len(self) + self.prior)
            settled[name] = self.stored[name].towards(*found, share)
            return settled[name]

        with (
            norms.evaluating(self.model),
            heap.kept(self._where),
            self._engine.autocast(),
            Tap(self.model) as tap,
        ):
            moments = lockstep(
                self.model,
                self.layers,
                batches,
                forward,
                weight=weight,
                settle=noted,
                watched=world().watched,
            )
            try:
                features = tap.take_all(len(self))
            except NoFeaturesError:
                features = None
        plain = Statistics(
            moments,
            len(self),
            available=self._available,
            random=self._random,
            limited=self._limited,
            dropped=self._dropped,
            unvisited=tuple(name for name in self.layers if name not in moments),
        )
        return Seen(plain, settled, [outputs[id(batch)] for batch in batches], features)
