"""Many domains for one model, at kilobytes a domain."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from adaptkit import norms
from adaptkit.errors import EstimationError
from adaptkit.estimation.statistics import Statistics


class DomainBank:
    """A model with the statistics of several domains, one of which is in place at a time.

    Args:
        model: whose own statistics hold outside of `domain`.

    >>> import torch
    >>> from adaptkit import estimate
    >>> net = nn.BatchNorm1d(1)
    >>> bank = DomainBank(net)
    >>> bank.add("camera-7", estimate(net, [torch.tensor([[4.0], [6.0]])]))
    >>> with bank.domain("camera-7"):
    ...     net.running_mean.item()
    5.0
    >>> net.running_mean.item()
    0.0
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._statistics: dict[str, Statistics] = {}

    def __len__(self) -> int:
        return len(self._statistics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics)

    def __getitem__(self, name: str) -> Statistics:
        if name not in self._statistics:
            known = ", ".join(self._statistics) or "none yet"
            raise EstimationError(f"there is no domain '{name}'; there are: {known}")
        return self._statistics[name]

    def add(self, name: str, statistics: Statistics | str | Path) -> None:
        """Keep a domain's statistics, given as such or as the path of a domain pack.

        Raises:
            EstimationError: they do not fit the model.
            CheckpointError: the pack cannot be read.
        """
        if not isinstance(statistics, Statistics):
            statistics = Statistics.load(statistics)
        statistics.check_fit(self.model)
        self._statistics[name] = statistics

    @contextmanager
    def domain(self, name: str) -> Iterator[nn.Module]:
        """Put a domain's statistics in place inside a `with`; afterwards the former ones are back.

        Not for several threads at once: a model has one set of statistics at a time.

        Raises:
            EstimationError: there is no such domain.
        """
        statistics = self[name]
        with norms.restoring(self.model):
            layers = norms.norm_layers(self.model)
            for layer, moments in statistics.items():
                norms.replace(layers[layer], moments.mean, moments.variance())
            yield self.model
