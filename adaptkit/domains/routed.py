"""One model for several domains: each image is normalised by its own domain's statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from adaptkit import norms
from adaptkit.domains import routed_bytes
from adaptkit.domains.router import Router
from adaptkit.errors import CheckpointError, EstimationError, ModelError
from adaptkit.estimation import DomainBank, Statistics


class RoutedModel(nn.Module):
    """A model that finds each image's domain and runs it with that domain's statistics.

    A batch passes the model as far as its first norm layer, and then each domain's images pass all
    of it. It runs in eval mode, whatever `train` was called with, and is not for several threads at
    once: the model has one set of statistics at a time.

    Args:
        model: as it was trained, with tensors or dicts, tuples and lists of tensors as output, a
            row an image. It is used, not copied, and is between calls as it was.
        router: from an image to the number of its domain.
        statistics: name -> of each domain, in the router's order.

    Raises:
        EstimationError: the router or the statistics do not fit the model, or each other.

    >>> from adaptkit.domains import adapt_domains
    >>> net = nn.Sequential(nn.BatchNorm2d(1))
    >>> x = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> x[:50] += 9
    >>> domains = adapt_domains(net, [x])
    >>> routed = RoutedModel(net, domains.router, domains.statistics)
    >>> y = routed(x)
    >>> bool(y[:50].mean().abs() < 0.1), bool(y[50:].mean().abs() < 0.1)
    (True, True)
    """

    def __init__(
        self, model: nn.Module, router: Router, statistics: Mapping[str, Statistics]
    ) -> None:
        super().__init__()
        if len(statistics) != router.domains:
            raise EstimationError(
                f"Expected the statistics of {router.domains} domains, got {len(statistics)}"
            )
        if router.layer.name not in norms.norm_layers(model):
            raise EstimationError(f"the model has no norm layer '{router.layer.name}'")
        self.model = model
        self.router = router
        self.bank = DomainBank(model)
        for name, of_domain in statistics.items():
            self.bank.add(name, of_domain)

    def forward(self, x: Tensor) -> Any:
        """Return the outputs in the images' order.

        Raises:
            EstimationError: the images do not reach the router's layer.
            ModelError: of several domains' images, the outputs are not of a row an image.
        """
        with norms.evaluating(self.model):
            numbers = self._numbers(x)
            rows = [(numbers == n).nonzero().flatten() for n in range(self.router.domains)]
            present = [n for n, index in enumerate(rows) if len(index)]
            if len(present) < 2:
                return self._within(present[0] if present else 0, x)
            outputs = [self._within(n, x[rows[n].to(x.device)]) for n in present]
        return _in_order(outputs, [rows[n] for n in present])

    def domains_of(self, x: Tensor) -> list[str]:
        """Return the name of each image's domain."""
        names = list(self.bank)
        with norms.evaluating(self.model):
            return [names[number] for number in self._numbers(x).tolist()]

    def _numbers(self, x: Tensor) -> Tensor:
        if self.router.domains == 1 or not len(x):
            return torch.zeros(len(x), dtype=torch.int64)
        return self.router.of_batch(self.model, x)

    def _within(self, number: int, x: Tensor) -> Any:
        with self.bank.domain(list(self.bank)[number]) as model:
            return model(x)

    def to_bytes(self) -> bytes:
        """Return the router and all statistics, without the model: safetensors.

        The statistics are those of domain packs, in float32.
        """
        return routed_bytes.dumps(self.router, {name: self.bank[name] for name in self.bank})

    @classmethod
    def from_bytes(cls, content: bytes, model: nn.Module) -> "RoutedModel":
        """Route a model by what `to_bytes` gave; no code in it runs.

        Raises:
            CheckpointError: the content is broken, or does not fit the model.
        """
        try:
            return cls(model, *routed_bytes.loads(content))
        except EstimationError as error:
            raise CheckpointError(f"these domains are not of this model: {error}") from None


def _in_order(outputs: Sequence[Any], rows: Sequence[Tensor]) -> Any:
    """Put the outputs for some of the rows each together, in the order of rows."""
    flat = [tree_flatten(output) for output in outputs]
    form = flat[0][1]
    back = torch.cat([*rows]).argsort()
    sizes = [len(index) for index in rows]
    if any(other != form for _, other in flat) or not all(
        _is_of_rows(leaf, size)
        for (leaves, _), size in zip(flat, sizes, strict=True)
        for leaf in leaves
    ):
        raise ModelError(
            "Expected a model whose outputs are tensors of a row an image: those of several "
            "domains' images cannot be put together"
        )
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree_unflatten([torch.cat(parts)[back.to(parts[0].device)] for parts in columns], form)


def _is_of_rows(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
