"""What a model's first norm layer sees of each image: where domains show before classes do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import Forward, call, device_of, inputs_of, to_device
from adaptkit.errors import DataError, EstimationError
from adaptkit.moments import PerSample

LEVELS = (0.05, 0.5, 0.95)  # of the quantiles
STATISTICS = 2 + len(LEVELS)  # of an image in each channel
_EPS = 1e-5  # added to variances, as batch norm does; dead channels have none
_VALUES = 1024  # of an image in a channel that quantiles are taken of, at most


@dataclass(frozen=True)
class FirstLayer:
    """The first norm layer that a forward reaches, and the source's statistics there.

    Args:
        name: of the layer.
        mean: shape (C,), float64, that the source model stores.
        variance: shape (C,), float64, likewise.

    Raises:
        EstimationError: these are not a mean and a variance of the same channels.
    """

    name: str
    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        both = torch.stack([self.mean, self.variance]) if self._alike() else None
        if both is None or not bool(both.isfinite().all()) or bool((self.variance < 0).any()):
            raise EstimationError(
                f"Expected a finite mean and a variance of 0 or more in each channel of norm layer "
                f"'{self.name}'"
            )

    def _alike(self) -> bool:
        return self.mean.ndim == 1 and self.mean.shape == self.variance.shape

    def statistics(self, x: Tensor) -> Tensor:
        """Return statistics of each image, in units of the source's.

        With m and v the mean and variance of an image's values in a channel, and q their 5%, 50%
        and 95% quantiles (of 1,024 values where there are more), side by side

            (m − m_s) / σ_s        log((v + ε) / σ_s²)        (q − m_s) / σ_s,  σ_s² = v_s + ε

        Args:
            x: shape (N, C) or (N, C, …), what the layer gets, on any device.

        Returns:
            Shape (N, 5·C), float64, on the CPU.

        Raises:
            EstimationError: `x` has other channels.

        >>> layer = FirstLayer("bn", torch.zeros(1), torch.ones(1))
        >>> layer.statistics(torch.tensor([[[0.0, 2.0, 4.0]]])).round(decimals=1).tolist()
        [[2.0, 1.0, 0.2, 2.0, 3.8]]
        """
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise EstimationError(
                f"norm layer '{self.name}' sees {tuple(x.shape)}; expected {len(self.mean)} "
                f"channels"
            )
        seen = PerSample.of(x)
        spread = (self.variance + _EPS).double().sqrt()
        variance = seen.m2.cpu().double() / max(seen.values, 1)
        places = [(v - self.mean) / spread for v in (seen.mean.cpu().double(), *_quantiles(x))]
        return torch.cat([places[0], ((variance + _EPS) / spread.square()).log(), *places[1:]], 1)

    def of_batch(self, model: nn.Module, batch: Any, forward: Forward | None = None) -> Tensor:
        """Run a batch as far as the layer and return `statistics` of its images.

        Args:
            model: in eval mode; run on its own device.
            batch: as a loader yields it, or a model's input.
            forward: called as ``forward(model, batch)``, for batches of any other form.

        Raises:
            EstimationError: the model has no such layer, the batch does not reach it, or the
                layer's rows are not the batch's.
        """
        layers = norms.norm_layers(model)
        if self.name not in layers:
            raise EstimationError(f"the model has no norm layer '{self.name}' with statistics")
        _, x = _reached(model, {self.name: layers[self.name]}, batch, forward)
        return self.statistics(x)


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> tuple[FirstLayer, Tensor]:
    """Find the first norm layer and what it sees of each image, in one pass as far as there.

    Args:
        model: with its source statistics, run in eval mode on its own device and left as it was.
        loader: any iterable of batches; labels are not read.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        progress: called as ``progress("looking", done, None)``.

    Returns:
        The layer, and `FirstLayer.statistics` of all images in order, shape (N, 5·C).

    Raises:
        EstimationError: the model has no norm layer with statistics, no batch reaches one, or a
            layer's rows are not the samples.
        DataError: there is no data, or a batch is of a form that only `forward` could handle.

    >>> net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2))
    >>> layer, seen = measure(net, [torch.zeros(3, 2, 4, 4), torch.ones(1, 2, 4, 4)])
    >>> layer.name, seen.shape
    ('1', torch.Size([4, 10]))
    """
    layers = norms.norm_layers(model)
    if not layers:
        raise EstimationError(
            f"the model has no layer with data-set statistics: {norms.why_nothing_to_adapt(model)}"
        )
    first: FirstLayer | None = None
    found: list[Tensor] = []
    with norms.evaluating(model), torch.no_grad():
        for batch in loader:
            if first is None:
                name, x = _reached(model, layers, batch, forward)
                stored = norms.read(layers[name])
                first = FirstLayer(name, stored.mean.cpu().double(), stored.variance.cpu().double())
                found.append(first.statistics(x))
            else:
                found.append(first.of_batch(model, batch, forward))
            if progress:
                progress("looking", sum(map(len, found)), None)
    if first is None:
        raise DataError("there is no data to tell domains apart in: the loader is empty")
    return first, torch.cat(found)


class _Reached(BaseException):
    """Ends a forward at a norm layer; no Exception, which a model might catch."""

    def __init__(self, name: str, x: Tensor) -> None:
        super().__init__(name)
        self.name, self.x = name, x


def _reached(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Any, forward: Forward | None
) -> tuple[str, Tensor]:
    """Return which of some layers a batch reaches first, and what that layer gets."""

    def stop(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Reached(name, args[0] if args else next(iter(kwargs.values())))

    hooks = [
        layer.register_forward_pre_hook(partial(stop, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        (forward or call)(norms.unwrap(model), to_device(batch, device_of(model)))
    except _Reached as at:
        name, x = at.name, at.x
    else:
        raise EstimationError(
            "no sample passed a norm layer with statistics: does forward= use the model?"
        )
    finally:
        for hook in hooks:
            hook.remove()
    if forward is None and len(x) != len(inputs_of(batch)):
        raise EstimationError(
            f"norm layer '{name}' sees {len(x)} rows for {len(inputs_of(batch))} samples, so their "
            f"domains cannot be told apart there"
        )
    return name, x


def _quantiles(x: Tensor) -> list[Tensor]:
    """Return the quantiles at `LEVELS`, each (N, C), linear between the values that there are."""
    values = x.detach().float().reshape(*x.shape[:2], -1)
    if values.shape[2] > _VALUES:  # anywhere in the image, but in all images the same places
        anywhere = torch.randperm(values.shape[2], generator=torch.Generator().manual_seed(0))
        values = values[:, :, anywhere[:_VALUES].to(values.device)]
    ordered = values.sort(2).values.cpu().double()
    last = ordered.shape[2] - 1
    found = []
    for level in LEVELS:
        below = int(level * last)
        low, high = ordered[:, :, below], ordered[:, :, min(below + 1, last)]
        found.append(low.lerp(high, level * last - below))
    return found
