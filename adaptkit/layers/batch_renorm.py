"""Batch Renormalization: batch norm whose training and inference agree."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from adaptkit.errors import AdaptkitError


@dataclass(frozen=True)
class RenormSchedule:
    """How far r and d may go at a training step: batch norm at first, then ever freer.

    r_max is 1 and d_max 0 up to step `start`; from there r_max rises linearly to `r_max` at step
    `r_end`, and d_max to `d_max` at step `d_end`. The defaults are the paper's.

    Source: Ioffe 2017, arXiv 1702.03275, section 4.1.

    >>> RenormSchedule().at(5_000), RenormSchedule().at(40_000)
    ((1.0, 0.0), (3.0, 5.0))
    """

    r_max: float = 3.0
    d_max: float = 5.0
    start: int = 5_000
    r_end: int = 40_000
    d_end: int = 25_000

    def __post_init__(self) -> None:
        _check_limits(self.r_max, self.d_max)
        if not 0 <= self.start < min(self.r_end, self.d_end):
            raise AdaptkitError(
                f"Expected start of 0 or more, before r_end and d_end, got {self.start}, "
                f"{self.r_end} and {self.d_end}"
            )

    def at(self, step: int) -> tuple[float, float]:
        """Return (r_max, d_max) at a step, counted from 0."""
        r, d = (
            min(max((step - self.start) / (end - self.start), 0.0), 1.0)
            for end in (self.r_end, self.d_end)
        )
        return 1.0 + r * (self.r_max - 1.0), d * self.d_max


class _BatchRenorm(_BatchNorm):
    """Batch Renormalization; see `BatchRenorm2d`."""

    _dimensions: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: RenormSchedule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_limits(r_max, d_max)
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, affine, True, **placed)
        self.r_max, self.d_max, self.schedule = r_max, d_max, schedule

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalise; in training, also move the running statistics."""
        self._check_input_dim(input)
        assert isinstance(self.running_mean, Tensor)  # noqa: S101  always tracked here
        assert isinstance(self.running_var, Tensor)  # noqa: S101
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        assert self.num_batches_tracked is not None  # noqa: S101
        step = int(self.num_batches_tracked)
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / (step + 1) if self.momentum is None else self.momentum
        r, d = self._corrections(input, self.running_mean, self.running_var, step)
        weight = r if self.weight is None else self.weight * r
        bias = d if self.weight is None else self.weight * d + self.bias
        # γ·((x − μ_B)/σ_B·r + d) + β, in one pass: the kernel's weight is γ·r, its bias γ·d + β.
        return functional.batch_norm(
            input, self.running_mean, self.running_var, weight, bias, True, momentum, self.eps
        )

    @torch.no_grad()
    def _corrections(
        self, x: Tensor, mean: Tensor, variance: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return r and d, shape (C,), from the running statistics before this step's update."""
        r_max, d_max = (self.r_max, self.d_max) if self.schedule is None else self.schedule.at(step)
        over = [i for i in range(x.ndim) if i != 1]
        var_b, mean_b = torch.var_mean(x.to(mean.dtype), over, correction=0)
        sigma = (variance + self.eps).sqrt()
        r = ((var_b + self.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        d = ((mean_b - mean) / sigma).clamp(-d_max, d_max)
        return r, d

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.ndim not in self._dimensions:
            wanted = " or ".join(f"{n}D" for n in self._dimensions)
            raise ValueError(f"expected {wanted} input (got {input.ndim}D input)")

    def extra_repr(self) -> str:
        """Name the limits beside batch norm's own settings."""
        limits = self.schedule or f"r_max={self.r_max}, d_max={self.d_max}"
        return f"{super().extra_repr()}, {limits}"  # type: ignore[no-untyped-call]


class BatchRenorm1d(_BatchRenorm):
    """Batch Renormalization of (N, C) or (N, C, L) input; see `BatchRenorm2d`.

    >>> BatchRenorm1d(3)(torch.randn(4, 3)).shape
    torch.Size([4, 3])
    """

    _dimensions = (2, 3)


class BatchRenorm2d(_BatchRenorm):
    """Batch Renormalization of (N, C, H, W) input.

        y = γ·((x − μ_B)/σ_B·r + d) + β
        r = clip(σ_B/σ, 1/r_max, r_max)        d = clip((μ_B − μ)/σ, −d_max, d_max)

    with μ_B, σ_B² = var_B + ε of the batch over (N, H, W), and μ, σ² = running_var + ε the running
    values before this step. No gradient flows through r and d. Where they are not clipped, the step
    normalises as inference does, by μ and σ. Inference is batch norm's.

    Buffers, keys, `momentum` and the update of the running statistics (unbiased variance) are those
    of `torch.nn.BatchNorm2d`, so that state dicts go both ways; with r_max=1 and d_max=0 the layer
    *is* batch norm. (The paper averages σ where this averages σ².)

    Args:
        num_features: C.
        eps: ε.
        momentum: of the running statistics, the paper's 0.01; None for a cumulative mean.
        affine: whether there are γ and β, shape (C,).
        r_max: 1 or more.
        d_max: 0 or more.
        schedule: gives r_max and d_max by the number of batches seen, in place of the two.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        AdaptkitError: r_max or d_max is out of its range.
        ValueError: the input has another number of dimensions, or a batch in training has one value
            a channel.

    Source: Ioffe 2017, arXiv 1702.03275.

    >>> layer = BatchRenorm2d(3, schedule=RenormSchedule())
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    _dimensions = (4,)


class BatchRenorm3d(_BatchRenorm):
    """Batch Renormalization of (N, C, D, H, W) input; see `BatchRenorm2d`.

    >>> BatchRenorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    _dimensions = (5,)


def _check_limits(r_max: float, d_max: float) -> None:
    if not r_max >= 1 or not d_max >= 0:
        raise AdaptkitError(
            f"Expected r_max of 1 or more and d_max of 0 or more, got {r_max} and {d_max}"
        )
