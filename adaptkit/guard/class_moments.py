"""What each norm layer sees of each class of the source domain."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, labels_of, to_device
from adaptkit.distributed import one_process
from adaptkit.errors import DataError, EstimationError
from adaptkit.moments import PerSample

LEAST = 2  # samples of a class, of which there are moments


@dataclass(frozen=True)
class ClassMoments:
    """Mean and variance of each class in each channel of each norm layer.

    Args:
        mean: layer name -> shape (K, C), float64.
        variance: layer name -> shape (K, C), float64, around the class's own mean.
        counts: shape (K,), float64, how many samples of each class there were.
    """

    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    counts: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are, K."""
        return len(self.counts)

    @property
    def shares(self) -> Tensor:
        """Shape (K,): the source's own mix of classes, which sums to 1."""
        return self.counts / self.counts.sum()

    def check_fit(self, model: nn.Module) -> None:
        """Raise EstimationError unless every layer is in the model, with as many channels."""
        layers = norms.norm_layers(model)
        for name in self.mean:
            if name not in layers:
                raise EstimationError(f"the model has no norm layer '{name}' with statistics")
            stored, known = len(norms.read(layers[name]).mean), self.mean[name].shape[1]
            if stored != known:
                raise EstimationError(
                    f"norm layer '{name}' has {stored} channels, the classes' moments {known}"
                )

    def mixed(self, name: str, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance that a layer would see under a mix of classes.

            m = Σ_k q_k·μ_k        v = Σ_k q_k·(σ²_k + (μ_k − m)²)

        Args:
            name: of the layer.
            shares: shape (K,), q, 0 or more, which sum to 1.

        Returns:
            Each of shape (C,), float64.

        >>> seen = ClassMoments(
        ...     {"bn": torch.tensor([[0.0], [4.0]])},
        ...     {"bn": torch.tensor([[1.0], [1.0]])},
        ...     torch.tensor([3.0, 3.0]),
        ... )
        >>> [v.item() for v in seen.mixed("bn", torch.tensor([0.5, 0.5]))]
        [2.0, 5.0]
        """
        mean, variance = self.mean[name], self.variance[name]
        q = shares.to(mean)[:, None]
        middle = (q * mean).sum(0)
        return middle, (q * (variance + (mean - middle).square())).sum(0)


def class_moments(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    classes: int,
    layers: norms.Select = None,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> ClassMoments:
    """Measure what each norm layer sees of each class, in one forward of labelled source data.

    Args:
        model: with its source statistics, run in eval mode on its own device and left as it was.
        loader: yields (tensor, labels) pairs, labels of 0 to `classes` − 1.
        classes: how many the model has, K.
        layers: names or globs of norm layers, or a predicate; by default all.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        progress: called as ``progress("measuring", done, None)``.

    Raises:
        DataError: there are no labels, or a class has fewer than two samples.
        EstimationError: the model has no norm layer with statistics, or a layer's rows are not the
            samples.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> data = [(torch.tensor([[0.0], [2.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1]))]
    >>> class_moments(net, data, classes=2).mean["0"].tolist()
    [[1.0], [5.0]]
    """
    one_process("class_moments")
    chosen = norms.norm_layers(model, layers)
    if not chosen:
        raise EstimationError(
            f"the model has no layer with data-set statistics: {norms.why_nothing_to_adapt(model)}"
        )
    where = device_of(model)
    sums = {name: _Sums.around(layer, classes) for name, layer in chosen.items()}
    labels = torch.zeros(0, dtype=torch.int64)
    counts = torch.zeros(classes, dtype=torch.float64)

    def note(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sums[name].add(name, args[0] if args else next(iter(kwargs.values())), labels)

    hooks = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, layer in chosen.items()
    ]
    try:
        with norms.evaluating(model), torch.no_grad():
            for batch in loader:
                labels = _labels(batch, classes)
                counts += torch.bincount(labels, minlength=classes)
                (forward or call)(model, to_device(batch, where))
                if progress:
                    progress("measuring", int(counts.sum()), None)
    finally:
        for hook in hooks:
            hook.remove()
    few = (counts < LEAST).nonzero().flatten().tolist()
    if few:
        raise DataError(
            f"Expected {LEAST} source images or more of each class, got {int(counts[few[0]])} of "
            f"class {few[0]}"
        )
    visited = {name: found for name, found in sums.items() if found.weight.any()}
    return ClassMoments(
        {name: found.mean() for name, found in visited.items()},
        {name: found.variance() for name, found in visited.items()},
        counts,
    )


def _labels(batch: Any, classes: int) -> Tensor:
    labels = labels_of(batch)
    if labels is None:
        raise DataError("Expected source data with labels, in pairs of (tensor, labels)")
    labels = labels.detach().cpu()
    if labels.ndim != 1 or labels.is_floating_point():
        raise DataError(f"Expected one whole number a sample as label, got {labels.dtype}")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise DataError(f"Expected labels from 0 to {classes - 1}, the model's classes")
    return labels.long()


@dataclass
class _Sums:
    """Sums over the samples of each class of values about a centre, so that nothing cancels."""

    centre: Tensor  # (C,)
    weight: Tensor  # (K, 1), values in a channel
    first: Tensor  # (K, C), Σ(x − centre)
    second: Tensor  # (K, C), Σ(x − centre)²

    @classmethod
    def around(cls, layer: nn.Module, classes: int) -> "_Sums":
        centre = norms.read(layer).mean.detach().cpu().double()
        empty = torch.zeros(classes, len(centre), dtype=torch.float64)
        return cls(centre, empty[:, :1].clone(), empty.clone(), empty.clone())

    def add(self, name: str, x: Tensor, labels: Tensor) -> None:
        if len(x) != len(labels):
            raise EstimationError(
                f"norm layer '{name}' sees {len(x)} rows for {len(labels)} samples, so their "
                f"classes cannot be told apart there"
            )
        seen = PerSample.of(x)
        off = seen.mean.cpu().double() - self.centre
        self.weight.index_add_(0, labels, torch.full((len(x), 1), float(seen.values)).double())
        self.first.index_add_(0, labels, off * seen.values)
        second = seen.m2.cpu().double() + off.square() * seen.values
        self.second.index_add_(0, labels, second)

    def mean(self) -> Tensor:
        return self.centre + self.first / self.weight

    def variance(self) -> Tensor:
        off = self.first / self.weight
        return (self.second / self.weight - off.square()).clamp_min(0)
