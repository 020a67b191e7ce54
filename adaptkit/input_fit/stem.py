"""What a model's first norm layer gets of an image, taken apart as the linear function it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit.errors import DataError, EstimationError

Floats = NDArray[np.float64]

_SLACK = 4  # times √(machine epsilon) of the largest response, by which a linear stem may miss

_AT_ONCE = 2**22  # numbers of a response, 32 MiB


@dataclass(frozen=True)
class Stem:
    """The part of a model from its input to the norm layer that a forward comes to first.

    Args:
        model: in eval mode.
        name: of that layer.
        layer: itself.

    >>> from adaptkit.norms import norm_layers
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    >>> stem = Stem.of(net.eval(), norm_layers(net), torch.zeros(4, 2))
    >>> stem.name, stem(torch.zeros(4, 2)).shape
    ('1', torch.Size([4, 3]))
    """

    model: nn.Module
    name: str
    layer: nn.Module

    @classmethod
    def of(cls, model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> "Stem":
        """Return the stem before whichever of some layers a forward of `x` comes to first.

        Raises:
            EstimationError: it comes to none of them.
        """
        name, _ = _first_input(model, layers, x)
        return cls(model, name, layers[name])

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the layer gets of inputs of shape (N, C, …): (N, C', …), as it comes."""
        return _first_input(self.model, {self.name: self.layer}, x)[1]

    def check_linear(self, x: Tensor) -> None:
        """Refuse a stem A with A(a·x + b·y) − A(0) ≠ a·(A(x) − A(0)) + b·(A(y) − A(0)).

        y is noise of the size of `x`, the same in every call.

        Raises:
            EstimationError: it is not linear.
        """
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        y = noise.to(x) * x.square().mean().sqrt()
        zero = self(torch.zeros_like(x)).double()
        of_x, of_y, of_both = (self(v).double() - zero for v in (x, y, 0.75 * x - 1.5 * y))
        off = float((of_both - 0.75 * of_x + 1.5 * of_y).abs().max())
        largest = float(torch.stack([of_x.abs().max(), of_y.abs().max()]).max())
        if not off <= _SLACK * torch.finfo(x.dtype).eps ** 0.5 * largest:
            raise EstimationError(
                f"a gain and an offset of the input can be fitted only where all before the first "
                f"norm layer is linear, and before '{self.name}' it is not: it misses a sum by "
                f"{off / largest if largest else float('inf'):.2g} of its largest response"
            )


@dataclass(frozen=True)
class Response:
    """Moments over a data set of a linear stem's responses to the parts of its input.

    With x_k the k-th of K parts of the images (an input channel), 1_k the constant 1 there, and the
    stem x ↦ A·x + c, the norm layer gets of Σ g_k·x_k + b_k·1_k

        z = Σ_k g_k·A x_k + Σ_k b_k·A 1_k + c = θ·(A x_1, …, A x_K, A 1_1, …, A 1_K, c)

    with θ = (g, b, 1), so that channel by channel its mean is θ·mean and its variance θᵀ·S·θ. That
    is exact, the zeros around padded images included, which no offset changes.

    Args:
        mean: shape (C', 2K + 1), float64, C' the channels of the norm layer.
        covariance: shape (C', 2K + 1, 2K + 1), float64, S, unbiased.
    """

    mean: Floats
    covariance: Floats

    @property
    def parts(self) -> int:
        """K."""
        return int(self.mean.shape[1]) // 2

    def moments(self, gain: Floats, offset: Floats) -> tuple[Floats, Floats]:
        """Return the mean and the variance at the norm layer, each of shape (C',).

        >>> response = Response(np.array([[3.0, 1.0, 0.0]]), np.diag([4.0, 0.0, 0.0])[None])
        >>> [v.tolist() for v in response.moments(np.array([-2.0]), np.array([1.0]))]
        [[-5.0], [16.0]]
        """
        theta = np.concatenate([gain, offset, [1.0]])
        variance = np.einsum("p,cpq,q->c", theta, self.covariance, theta)
        return self.mean @ theta, np.maximum(variance, 0)


class ResponseSums:
    """Sums of which a `Response` is made, batch by batch, in float64.

    Args:
        stem: a linear one.
        apart: whether each input channel is a part; else all of them are one.
    """

    def __init__(self, stem: Stem, *, apart: bool) -> None:
        self.stem, self.apart = stem, apart
        self._count = 0
        self._first = torch.zeros(1, 1, dtype=torch.float64)
        self._second = torch.zeros(1, 1, 1, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add images of shape (N, C, …)."""
        masks = _masks(x) if self.apart else [torch.ones_like(x[:1])]
        constant = [self.stem(m)[0].double() for m in (torch.zeros_like(x[:1]), *masks)]
        zero, ones = constant[0], [v - constant[0] for v in constant[1:]]
        varying = [self.stem(x * m).double() - zero for m in masks]
        rows = max(1, _AT_ONCE // ((2 * len(masks) + 1) * zero.numel()))
        for of_images in zip(*(v.split(rows) for v in varying), strict=True):
            same = [v.expand_as(of_images[0]) for v in (*ones, zero)]
            # (C', 2K + 1, values in some images)
            z = torch.stack([*of_images, *same], 1).transpose(0, 2).flatten(2)
            self._count += z.shape[2]
            self._first = self._first + z.sum(2).cpu()
            self._second = self._second + (z @ z.transpose(1, 2)).cpu()

    def response(self) -> Response:
        """Return the moments of all that was added.

        Raises:
            DataError: a channel has fewer than two values.
            EstimationError: the responses are not finite.
        """
        n = self._count
        if n < 2:
            raise DataError(
                f"Expected two samples or more at norm layer '{self.stem.name}', got {n}"
            )
        mean = self._first / n
        covariance = (self._second - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)
        if not bool(covariance.isfinite().all()):
            raise EstimationError(f"what norm layer '{self.stem.name}' sees is not finite")
        return Response(mean.numpy(), covariance.numpy())


class _ReachedError(Exception):
    """A forward has come to where it was to stop."""


def _first_input(
    model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor
) -> tuple[str, Tensor]:
    """Return the name of the layer that a forward comes to first, and its input."""
    found: list[tuple[str, Tensor]] = []

    def stop(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((name, args[0] if args else next(iter(kwargs.values()))))
        raise _ReachedError

    hooks = [
        layer.register_forward_pre_hook(partial(stop, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(x)
    except _ReachedError:
        return found[0]
    finally:
        for hook in hooks:
            hook.remove()
    raise EstimationError("a forward of the model comes to none of its norm layers")


def _masks(x: Tensor) -> list[Tensor]:
    """Return ones in one channel and zeros in the others, for each, of shape (1, C, …)."""
    masks = torch.zeros_like(x[:1]).repeat(x.shape[1], *[1] * (x.ndim - 1))
    for k in range(x.shape[1]):
        masks[k, k] = 1
    return list(masks.split(1))
