"""Adapting to a target that may be several domains, each by itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adaptkit.batches import Forward
from adaptkit.distributed import one_process
from adaptkit.domains.first_layer import measure
from adaptkit.domains.parts import Parts
from adaptkit.domains.router import Router
from adaptkit.domains.tree import split
from adaptkit.estimation import Statistics, estimate


@dataclass(frozen=True)
class Domains:
    """The domains of a target.

    Args:
        router: from an image to the number of its domain.
        statistics: name -> what was estimated from a domain's images alone, in the router's order.
        members: name -> a domain's images, as indices in the loader's data set, or in a list of
            batches as numbers counted over all of them.
    """

    router: Router
    statistics: Mapping[str, Statistics]
    members: Mapping[str, list[int]]


def adapt_domains(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    estimate_one: Callable[[Iterable[Any]], Statistics] | None = None,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Domains:
    """Find a target's domains and estimate the statistics of each from its images alone.

    All images pass once as far as the first norm layer; then each domain's are read again. Where
    they are one domain the statistics are those of the whole target, as `adapt` would have them.
    `RoutedModel` runs a model with what comes of it.

    Args:
        model: with its source statistics, left as it was.
        loader: a DataLoader of a data set that can be indexed, an `ImageLoader`, or a list of
            batches; labels are not read.
        estimate_one: from a loader of one domain's images to its statistics; by default `estimate`.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        DataError: there is no data, or the loader cannot be read twice in the same order.
        EstimationError: see `estimate`; or the rows of the first norm layer are not the samples.

    >>> import torch
    >>> net = nn.Sequential(nn.BatchNorm2d(1))
    >>> x = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> x[:30] += 9
    >>> domains = adapt_domains(net, [x[:40], x[40:]])
    >>> {name: len(indices) for name, indices in domains.members.items()}
    {'domain 1': 70, 'domain 2': 30}
    >>> [round(found["0"].mean.item()) for found in domains.statistics.values()]
    [0, 9]
    """

    def whole(part: Iterable[Any]) -> Statistics:
        return estimate(model, part, forward=forward, progress=progress)

    one_process("adapt_domains")
    parts = Parts.of(loader)
    layer, seen = measure(model, parts.whole, forward=forward, progress=progress)
    read = parts.read(len(seen))
    tree = split(seen)
    numbers = tree.assign(seen)
    members = {
        f"domain {number + 1}": [read[i] for i in (numbers == number).nonzero().flatten().tolist()]
        for number in range(tree.domains)
    }
    one = estimate_one or whole
    if tree.domains == 1:
        statistics = {"domain 1": one(loader)}
    else:
        statistics = {name: one(parts.part(indices)) for name, indices in members.items()}
    return Domains(Router(layer, tree), statistics, members)
