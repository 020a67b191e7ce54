"""Instance-Batch Normalization: some channels normalised by themselves, the rest over the batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptkit.errors import AdaptkitError


class GuardedInstanceNorm2d(nn.InstanceNorm2d):
    """Affine instance norm that also takes what torch's refuses, as batch norm takes it.

        y = γ·(x − μ)/√(σ² + ε) + β

    with μ and the biased σ² of each sample and channel over (H, W). An empty batch gives an empty
    result. A map of one value is its own mean, and so gives β at inference; in training it is an
    error, as it would leave nothing to learn from.

    Args:
        num_features: C.
        eps: ε.
        device: of γ and β, shape (C,).
        dtype: of γ and β.

    Shapes: (N, C, H, W) to the same.

    Raises:
        ValueError: the input is of another shape, or its maps in training have one value.

    Source: Ulyanov et al. 2016, arXiv 1607.08022.

    >>> GuardedInstanceNorm2d(3).eval()(torch.randn(2, 3, 1, 1)).abs().max().item()
    0.0
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, affine=True, **placed)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalise each map of each sample."""
        _check_shape(input, self.num_features)
        alone = not self.training and input.size(2) * input.size(3) == 1
        if alone or input.numel() == 0:
            # Written out with x − x, and not as β alone, for NaN to stay NaN.
            y = (input - input) * self.weight[:, None, None] + self.bias[:, None, None]
            return y.to(input.dtype)
        return functional.instance_norm(input, weight=self.weight, bias=self.bias, eps=self.eps)


class IBN(nn.Module):
    """Instance-Batch Normalization (IBN-a) of (N, C, H, W) input.

        y = [IN(x[:, :h]), BN(x[:, h:])]        h = int(C·ratio)          instance_first
        y = [BN(x[:, :h]), IN(x[:, h:])]        h = int(C·(1 − ratio))    otherwise

    joined along the channels, with

        IN(x) = γ·(x − μ)/√(σ² + ε) + β         μ, σ² of each sample and channel over (H, W)
        BN(x) = γ·(x − μ)/√(σ² + ε) + β         μ, σ² of each channel over (N, H, W), biased; at
                                                inference the running values

    The first form is that of ResNets, the second, with ratio 0.4, that of DenseNets. The parts are
    the submodules `IN` and `BN`, so that state dicts of published IBN-Nets fit. Of the two only
    `BN` has statistics of a data set to re-estimate. At inference a map of one value gives β of
    the instance-normalised channels.

    Args:
        num_features: C, 2 or more.
        ratio: the share of the channels that instance norm gets, between 0 and 1.
        eps: ε of both.
        momentum: of the running statistics; None for a cumulative mean.
        instance_first: whether the first channels are those of `IN`.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Shapes: (N, C, H, W) to the same.

    Raises:
        AdaptkitError: one of the two parts would have no channel.
        ValueError: the input is of another shape, or a map in training has one value.

    Source: Pan et al. 2018, arXiv 1807.09441.

    >>> layer = IBN(64, ratio=0.4, instance_first=False)
    >>> layer.BN.num_features, layer.IN.num_features
    (38, 26)
    >>> layer(torch.randn(2, 64, 4, 4)).shape
    torch.Size([2, 64, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        ratio: float = 0.5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        instance_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise AdaptkitError(f"Expected a ratio between 0 and 1, got {ratio}")
        # 1 − share is the other share only up to rounding: published DenseNets have these widths.
        first = int(num_features * (ratio if instance_first else 1 - ratio))
        if not 0 < first < num_features:
            raise AdaptkitError(
                f"Expected a ratio that gives instance norm and batch norm a channel each, got "
                f"{ratio} of {num_features}: bring the ratio nearer to 0.5, or use one norm alone"
            )
        self.num_features, self.ratio, self.instance_first = num_features, ratio, instance_first
        self.first = first
        instances = first if instance_first else num_features - first
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.IN = GuardedInstanceNorm2d(instances, eps, **placed)
        self.BN = nn.BatchNorm2d(num_features - instances, eps, momentum, **placed)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in training, also move the running statistics of `BN`."""
        _check_shape(x, self.num_features)
        head, tail = x[:, : self.first], x[:, self.first :]
        # IN before BN in either form: where IN refuses a batch, BN's statistics have not moved.
        if self.instance_first:
            return torch.cat([self.IN(head), self.BN(tail)], 1)
        instances = self.IN(tail)
        return torch.cat([self.BN(head), instances], 1)

    def extra_repr(self) -> str:
        """Name the settings."""
        return f"{self.num_features}, ratio={self.ratio}, instance_first={self.instance_first}"


def _check_shape(x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.size(1) != channels:
        raise ValueError(f"Expected input of shape (N, {channels}, H, W), got {list(x.shape)}")
