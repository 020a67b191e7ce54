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
    """Batch Renormalization; see `BatchRenorm2d`. What `forward` reads is what TorchScript can."""

    _dimensions: tuple[int, int]  # of the input, at least and at most

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
        self.schedule = schedule
        self._least, self._most = self._dimensions
        self.r_max = float(r_max if schedule is None else schedule.r_max)
        self.d_max = float(d_max if schedule is None else schedule.d_max)
        # Without a schedule the limits are reached before the first step.
        self._start, self._r_end, self._d_end = (
            (-1, 0, 0) if schedule is None else (schedule.start, schedule.r_end, schedule.d_end)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Normalise; in training, also move the running statistics."""
        self._check_input_dim(input)
        mean, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None  # noqa: S101  always tracked here, as are the other two
        assert variance is not None  # noqa: S101
        assert batches is not None  # noqa: S101
        if not self.training or input.numel() == 0:  # nothing is learnt from no values
            return functional.batch_norm(
                input, mean, variance, self.weight, self.bias, eps=self.eps
            )
        r, d = self._corrections(input, mean, variance, batches)
        batches.add_(1)
        # Of the batches seen, this one included, where the mean is to be cumulative.
        momentum = 1.0 / float(batches) if self.momentum is None else self.momentum
        weight = r if self.weight is None else self.weight * r
        bias = d if self.weight is None else self.weight * d + self.bias
        # γ·((x − μ_B)/σ_B·r + d) + β, in one pass: the kernel's weight is γ·r, its bias γ·d + β.
        return functional.batch_norm(input, mean, variance, weight, bias, True, momentum, self.eps)

    def _corrections(
        self, x: Tensor, mean: Tensor, variance: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return r and d, shape (C,), from the running statistics before this step's update."""
        step = step.to(torch.promote_types(mean.dtype, torch.float32))
        r_share = ((step - self._start) / (self._r_end - self._start)).clamp(0, 1)
        d_share = ((step - self._start) / (self._d_end - self._start)).clamp(0, 1)
        r_max = 1.0 + r_share * (self.r_max - 1.0)
        d_max = d_share * self.d_max
        over = [0] + list(range(2, x.dim()))  # noqa: RUF005  TorchScript has no unpacking
        var_b, mean_b = torch.var_mean(x.detach().to(mean.dtype), over, correction=0)
        sigma = (variance + self.eps).sqrt()
        r = ((var_b + self.eps).sqrt() / sigma).clamp(1 / r_max, r_max)
        d = ((mean_b - mean) / sigma).clamp(-d_max, d_max)
        return r.to(mean.dtype), d.to(mean.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < self._least or input.dim() > self._most:
            wanted = f"{self._least}D"
            if self._most != self._least:
                wanted = f"{self._least}D or {self._most}D"
            raise ValueError(f"expected {wanted} input (got {input.dim()}D input)")

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

    An empty batch gives an empty result and teaches the layer nothing. For TorchScript and
    torch.export in training, `momentum` has to be a number.

    Raises:
        AdaptkitError: r_max or d_max is out of its range.
        ValueError: the input has another number of dimensions, or a batch in training has one value
            a channel.

    Source: Ioffe 2017, arXiv 1702.03275.

    >>> layer = BatchRenorm2d(3, schedule=RenormSchedule())
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    _dimensions = (4, 4)


class BatchRenorm3d(_BatchRenorm):
    """Batch Renormalization of (N, C, D, H, W) input; see `BatchRenorm2d`.

    >>> BatchRenorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    _dimensions = (5, 5)


def _check_limits(r_max: float, d_max: float) -> None:
    if not r_max >= 1 or not d_max >= 0:
        raise AdaptkitError(
            f"Expected r_max of 1 or more and d_max of 0 or more, got {r_max} and {d_max}"
        )
