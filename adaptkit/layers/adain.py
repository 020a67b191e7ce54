"""Adaptive Instance Normalization: each image's channels brought to the statistics of a style."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit.errors import DataError


@dataclass(frozen=True)
class Style:
    """The channel statistics that images or features of a domain have, one by one, on average.

    Args:
        mean: shape (C,), the mean over samples of each sample's mean, in the unit of the values.
        std: shape (C,), the mean over samples of each sample's √(σ² + ε), σ² its biased variance.

    >>> Style.of(torch.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]])).mean
    tensor([4.])
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise DataError(
                f"Expected a style's mean and std of one shape (C,), got "
                f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            )
        if not bool(self.mean.isfinite().all() and (self.std >= 0).all()):
            raise DataError("Expected a style of finite means and of stds of 0 or more")

    @classmethod
    def of(cls, x: Tensor | Iterable[Tensor], *, eps: float = 1e-5) -> "Style":
        """Return the style of images or features: a tensor of shape (N, C, …), or batches of them.

        Raises:
            DataError: there is no sample, or one is not finite.
            ValueError: a tensor is not of shape (N, C, …) with C as in the others.

        The sums are float64.
        """
        count, mean, std = 0, torch.zeros(1).double(), torch.zeros(1).double()
        for batch in [x] if isinstance(x, Tensor) else x:
            each_mean, each_std = _statistics(batch.detach(), eps)
            mean = mean + each_mean.flatten(1).cpu().double().sum(0)
            std = std + each_std.flatten(1).cpu().double().sum(0)
            count += len(batch)
        if not count:
            raise DataError("there is no sample to take a style from")
        return cls((mean / count).float(), (std / count).float())


def adaptive_instance_norm(x: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """Give each sample of `x` the channel means and standard deviations of that of `y`.

        AdaIN(x, y) = σ(y)·(x − μ(x)) / σ(x) + μ(y)        σ(x) = √(var(x) + ε)

    μ and the biased var are over all dimensions but the first two, of each sample by itself. Where
    a channel of x is constant, as every 1x1 map is, the result is μ(y). Computed in float32 for
    narrower dtypes; gradients flow through all four statistics.

    Args:
        x: shape (N, C, …), floating.
        y: shape (N, C, …) or (1, C, …), of any spatial size but 0.
        eps: inside both roots.

    Returns:
        Of the shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit.

    Source: Huang & Belongie 2017, arXiv 1703.06868, equation 8.

    >>> x = torch.tensor([[[[0.0, 2.0]]]])
    >>> adaptive_instance_norm(x, 10 * x + 5, eps=0.0)
    tensor([[[[ 5., 25.]]]])
    """
    if y.ndim < 2 or y.size(1) != x.size(1) or (y.size(0) != 1 and y.size(0) != x.size(0)):
        raise ValueError(
            f"Expected y of the channels of x, {x.shape}, and of as many samples or one, "
            f"got {y.shape}"
        )
    if y.numel() == 0:
        raise ValueError(f"Expected y with values to take a style from, got {y.shape}")
    mean, std = _statistics(y, eps)
    return _aligned(x, mean, std, eps)


def restyle(x: Tensor, style: Style, eps: float = 1e-5) -> Tensor:
    """Give each sample of `x`, images or a layer's features, the channel statistics of a style.

    `adaptive_instance_norm` towards stored statistics instead of another image: an adaptation that
    looks at one image at a time, and so needs no batch and minds neither mixed domains nor the
    mix of classes. What it undoes is a gain and an offset of each channel of each image.

    Args:
        x: shape (N, C, …), floating.
        style: of the source domain, `Style.of(source_images)`.
        eps: inside the root of σ(x).

    Raises:
        ValueError: `x` has another number of channels.

    >>> style = Style.of(torch.rand(100, 3, 8, 8))
    >>> dark = 0.3 * torch.rand(2, 3, 8, 8)
    >>> [round(m, 1) for m in restyle(dark, style).mean((2, 3))[0].tolist()]
    [0.5, 0.5, 0.5]
    """
    return _aligned(x, _wide(style.mean, x), _wide(style.std, x), eps)


class AdaptiveInstanceNorm(nn.Module):
    """AdaIN as a layer: towards the style of a second input, or else towards the one it stores.

        y = σ_style·(x − μ(x)) / √(var(x) + ε) + μ_style

    See `adaptive_instance_norm`. It has no parameters; the stored style, two buffers of shape (C,),
    is mean 0 and standard deviation 1 until it is set.

    Args:
        num_features: C.
        eps: ε.
        device: of the buffers.
        dtype: of the buffers.

    Shapes: x (N, C, …) to the same; the style input (N, C, …) or (1, C, …).

    Source: Huang & Belongie 2017, arXiv 1703.06868.

    >>> layer = AdaptiveInstanceNorm.towards(Style.of(torch.rand(9, 3, 8, 8)))
    >>> layer(torch.rand(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(num_features, device=device, dtype=dtype))

    @classmethod
    def towards(cls, style: Style, eps: float = 1e-5) -> "AdaptiveInstanceNorm":
        """Return a layer that stores a style."""
        layer = cls(len(style.mean), eps, device=style.mean.device, dtype=style.mean.dtype)
        layer.mean.copy_(style.mean)
        layer.std.copy_(style.std)
        return layer

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Align each sample of `x` with that of `style`, or with the stored style."""
        if style is not None:
            return adaptive_instance_norm(x, style, self.eps)
        return _aligned(x, _wide(self.mean, x), _wide(self.std, x), self.eps)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{self.num_features}, eps={self.eps}"


def _aligned(x: Tensor, mean: Tensor, std: Tensor, eps: float) -> Tensor:
    """`mean` and `std` have one entry a channel, for each sample or for all."""
    if x.ndim < 3 or not x.is_floating_point() or x.size(1) != mean.size(1):
        raise ValueError(
            f"Expected floating x of shape (N, {mean.size(1)}, ...) with spatial dimensions, "
            f"got {x.dtype} {x.shape}"
        )
    if x.numel() == 0:
        return x.clone()
    own_mean, own_std = _statistics(x, eps)
    shape = [mean.size(0), mean.size(1)] + [1] * (x.ndim - 2)
    mean, std = mean.reshape(shape), std.reshape(shape)
    # Not as one gain and one offset: where a channel is constant, x − μ(x) has to be exactly 0.
    y = (x.to(own_mean.dtype) - own_mean) / own_std * std + mean
    return y.to(x.dtype)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return μ and √(var + ε) of each sample, shape (N, C, 1, …), in float32 or wider."""
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(
            f"Expected a floating tensor of shape (N, C, ...) with spatial dimensions, "
            f"got {x.dtype} {x.shape}"
        )
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    over = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    return mean, (variance + eps).sqrt()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Return stored statistics as (1, C), where and as precise as those of `like` are."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return values.to(like.device, dtype)[None]
