"""Mean and variance per channel, with their standard errors, in a form that merges exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Beyond this ratio of |mean| to standard deviation, float32 no longer holds the mean to 1e-5
# of the standard deviation, so such input is summed in float64.
_FLOAT32_MEAN_TO_STD = 64.0


@dataclass(frozen=True)
class PerSample:
    """Mean and sum of squared deviations of each sample by itself.

    Args:
        values: how many values each sample has in each channel, n_i.
        mean: shape (N, C).
        m2: shape (N, C).
    """

    values: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "PerSample":
        """Return the moments of each sample of `x`, shape (N, C) or (N, C, …), any floating dtype.

        Taken sample by sample they are as fast as taken at once and more exact: torch's kernel sums
        channels-last input in float32, which over 200,000 values costs 2e-5 in the log-variance,
        and over those of one image, merged in float64, 6e-7.

        Raises:
            ValueError: `x` has fewer than two dimensions or is not floating.
        """
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(
                f"Expected `x` to be floating of shape (N, C, ...), got {x.dtype} {tuple(x.shape)}"
            )
        x = x.detach()
        n, channels = x.shape[:2]
        values = x[:1, :1].numel() if n and channels else x.shape[2:].numel()
        if values == 1:
            mean = x.reshape(n, channels)
            return cls(1, mean, torch.zeros_like(mean))
        if not x.numel():
            nothing = x.new_zeros(n, channels)
            return cls(values, nothing, nothing)
        if x.dtype != torch.float64:
            mean, variance = _kernel(x)
            if not bool((mean.abs() > _FLOAT32_MEAN_TO_STD * variance.sqrt()).any()):
                return cls(values, mean, _double(variance) * (values - 1))
        variance, mean = torch.var_mean(_double(x).flatten(2), 2, correction=0)
        return cls(values, mean, variance * values)


@dataclass(frozen=True)
class Moments:
    """The number of values, their mean, and the sum of their squared deviations, per channel.

    Two disjoint sets merge without loss by Chan's formula (Chan, Golub & LeVeque 1983):
    with δ = mean_b − mean_a and n = n_a + n_b,

        mean = mean_a + δ·n_b/n        m2 = m2_a + m2_b + δ²·n_a·n_b/n

    so the result does not depend on how the values were split (up to float64 rounding), and
    nothing cancels as it does in E[x²] − E[x]².

    Args:
        count: the number of values in each channel.
        weight: the sum of the values' weights; `count` where they have none.
        mean: shape (C,), float64, in the values' own unit.
        m2: shape (C,), float64, Σ w·(x − mean)², in that unit squared.
        samples: how many samples (images) the values belong to.
        scatter: shape (3, 3, C), float64, Σ v·vᵀ over samples, with v = w·(number of values,
            Σ(x − mean), Σ(x − mean)²) of a sample: what standard errors need.
        within: whether the variance is the mean of the samples' own unbiased variances, without the
            spread between samples, as InstanceNorm tracks it; `m2` is then that times `weight`.

    >>> x = torch.tensor([[1.0, 10.0], [2.0, 10.0], [6.0, 10.0]])
    >>> m = Moments.of(x[:1]) + Moments.of(x[1:])
    >>> m.count, m.mean.tolist(), m.variance().tolist()
    (3, [3.0, 10.0], [7.0, 0.0])
    """

    count: int
    weight: float
    mean: Tensor
    m2: Tensor
    samples: int
    scatter: Tensor
    within: bool = False

    @classmethod
    def of(cls, x: Tensor, *, weight: Tensor | None = None) -> "Moments":
        """Return the moments of `x` over all its dimensions but the second.

        Args:
            x: shape (N, C) or (N, C, …), any floating dtype. An empty `x` has count 0.
            weight: shape (N,), 0 or more, one a sample, of which only the ratios matter; by default
                all weigh 1.

        Returns:
            float64 moments, on the device of `x` (on the CPU where that device has no float64).

        Raises:
            ValueError: `x` has fewer than two dimensions or is not floating, or `weight` is not of
                shape (N,) or is negative or not finite.

        >>> Moments.of(torch.tensor([[1.0], [5.0]]), weight=torch.tensor([3.0, 1.0])).mean.item()
        2.0
        """
        return cls.pooled([PerSample.of(x)], weight=weight)

    @classmethod
    def pooled(
        cls,
        parts: Sequence[PerSample],
        *,
        weight: Tensor | None = None,
        within: bool = False,
    ) -> "Moments":
        """Return the moments over all samples of `parts`, in order; `weight` as in `of`.

        The parts may differ in how many values their samples have.

        Raises:
            ValueError: `weight` is wrong (see `of`), or samples of one value have no variance.
        """
        mean_i = torch.cat([_double(part.mean) for part in parts])
        m2_i = torch.cat([_double(part.m2) for part in parts])
        sizes = torch.tensor([len(p.mean) for p in parts])
        values = torch.tensor([p.values for p in parts], dtype=torch.float64)
        n_i = values.repeat_interleave(sizes).to(mean_i.device)
        w_i = torch.ones_like(n_i) if weight is None else _weights(weight, n_i)
        share = w_i * n_i
        # What weighs nothing does not count, so that it does not matter who has it of several sets.
        total, count = float(share.sum()), int(n_i[w_i > 0].sum())
        if not total or not mean_i.shape[1]:
            return cls.empty(mean_i.shape[1], device=mean_i.device)
        # About a first guess, so that the sum over samples loses nothing to a large mean.
        guess = mean_i[0]
        mean = guess + share @ (mean_i - guess) / total
        deviation = mean_i - mean
        if within:
            if bool((n_i < 2).any()):
                raise ValueError("Expected two values or more in each sample for its variance")
            squares = m2_i * (n_i / (n_i - 1))[:, None]
        else:
            squares = m2_i + n_i[:, None] * deviation.square()
        weighted = w_i[:, None] * n_i[:, None]
        scatter = _outer(weighted.expand_as(mean_i), weighted * deviation, w_i[:, None] * squares)
        m2 = w_i @ squares
        return cls(count, total, mean, m2, int((w_i > 0).sum()), scatter, within)

    @classmethod
    def empty(cls, channels: int, *, device: torch.device | str = "cpu") -> "Moments":
        """Return the moments of no values, which leave any other unchanged when added.

        >>> (Moments.empty(2) + Moments.of(torch.ones(3, 2))).count
        3
        """
        zeros = _double(torch.zeros(channels, device=device))
        return cls(0, 0.0, zeros, zeros.clone(), 0, zeros.expand(3, 3, -1).clone())

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Expected moments of the same channels, got {tuple(self.mean.shape)} "
                f"and {tuple(other.mean.shape)}"
            )
        if not self.weight or not other.weight:
            return self if self.weight else other
        weight = self.weight + other.weight
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.weight / weight)
        between = delta.square() * (self.weight * other.weight / weight)
        return Moments(
            self.count + other.count,
            weight,
            mean,
            self.m2 + other.m2 + (0 if self.within else between),
            self.samples + other.samples,
            _about(self.scatter, self.mean - mean, self.within)
            + _about(other.scatter, other.mean - mean, self.within),
            self.within,
        )

    def variance(self) -> Tensor:
        """Return the unbiased variance, m2 / weight · count / (count − 1), shape (C,).

        With `within`, m2 / weight, which is unbiased already.

        Raises:
            ValueError: there are fewer than two values.
        """
        if self.count < 2:
            raise ValueError(f"Expected two values or more for the variance, got {self.count}")
        bessel = 1 if self.within else self.count / (self.count - 1)
        return self.m2 * (bessel / self.weight)

    def standard_error(self) -> tuple[Tensor, Tensor]:
        """Return the standard errors of the mean and of the log-variance, each of shape (C,).

        Samples count as clusters: the values of one image are not independent. With N samples, W
        the whole weight, and for each sample i a_i = w·Σ(x − mean), q_i = w·Σ(x − mean)² and n_i
        (its values times its weight),

            se(mean)² = N/(N − 1) · Σ a_i² / W²
            se(log σ²)² = N/(N − 1) · Σ (q_i − σ²·n_i)² / (W·σ²)²

        the linearised (sandwich) estimator. It is of this layer's own input: what the error of the
        layers before adds is not in it. NaN for fewer than two samples, and for the log-variance of
        a constant channel.

        Source: Liang & Zeger 1986, Biometrika 73(1).

        >>> x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
        >>> round(Moments.of(x).standard_error()[0].item(), 4)  # √(20/3 / 4)
        1.291
        """
        if self.samples < 2:
            unknown = torch.full_like(self.mean, torch.nan)
            return unknown, unknown.clone()
        s, sigma2 = self.scatter, self.m2 / self.weight
        cluster = self.samples / (self.samples - 1) / self.weight**2
        mean = (s[1, 1].clamp(min=0) * cluster).sqrt()
        spread = s[2, 2] - 2 * sigma2 * s[0, 2] + sigma2.square() * s[0, 0]
        log_variance = (spread.clamp(min=0) * cluster).sqrt() / sigma2
        return mean, log_variance.where(sigma2 > 0, torch.nan)

    def sums(self, center: Tensor) -> Tensor:
        """Return these moments as numbers that add up over disjoint sets, for an all-reduce.

        The count, the weight W, the number of samples, and for each channel, about its center c,

            Σw(x − c) = W·(mean − c)        Σw(x − c)² = m2 + W·(mean − c)²

        and the six entries on and above the diagonal of `scatter` about c.

        Args:
            center: shape (C,), float64, on this device: the same for all sets, and near the mean
                (see `of_sums`).

        Returns:
            Shape (3 + 8·C,), float64.
        """
        shift = self.mean - center
        squares = self.m2 if self.within else self.m2 + self.weight * shift.square()
        scatter = _about(self.scatter, shift, self.within)
        above = [scatter[i, j] for i in range(3) for j in range(i, 3)]
        counts = self.mean.new_tensor([self.count, self.weight, self.samples])
        return torch.cat([counts, self.weight * shift, squares, *above])

    @classmethod
    def of_sums(cls, sums: Tensor, center: Tensor, *, within: bool = False) -> "Moments":
        """Return the moments that such sums are of; the inverse of `sums`.

        With d = |mean − c| / σ the variance loses d² units of float64's last place, and the
        standard errors d⁴: about 1e-8 of them up to d = 100. What is below float64's rounding of
        the mean is no variance and counts as 0.

        >>> x, c = torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(1, dtype=torch.float64)
        >>> sums = Moments.of(x[:1]).sums(c) + Moments.of(x[1:]).sums(c)
        >>> m = Moments.of_sums(sums, c)
        >>> m.count, m.mean.tolist(), m.variance().tolist()
        (3, [3.0], [7.0])
        """
        count, weight, samples = (float(v) for v in sums[:3])
        if not weight:
            return cls.empty(len(center), device=center.device)
        first, squares, *above = sums[3:].view(8, -1)
        shift = first / weight
        mean = center + shift
        m2 = squares if within else squares - weight * shift.square()
        lost = 8 * torch.finfo(torch.float64).eps * (center.abs() + mean.abs())
        m2 = torch.where(m2 <= weight * lost.square(), torch.zeros_like(m2), m2)
        index = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
        about_c = torch.stack([torch.stack([above[i] for i in row]) for row in index])
        scatter = _about(about_c, -shift, within)
        return cls(int(count), weight, mean, m2, int(samples), scatter, within)

    def to(self, device: torch.device | str) -> "Moments":
        """Return these moments on a device."""
        tensors = (getattr(self, name).to(device) for name in ("mean", "m2", "scatter"))
        return replace(self, **dict(zip(("mean", "m2", "scatter"), tensors, strict=True)))

    def is_finite(self) -> bool:
        """Whether every channel's mean and variance is a finite number."""
        return bool(self.mean.isfinite().all() and self.m2.isfinite().all())


def _kernel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each sample, float32 (N, C), without a copy of `x` on a CPU."""
    n, channels = x.shape[:2]
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x.flatten(2).float(), 2)
        return mean, variance
    mean, variance = torch.zeros(2, n, channels, dtype=torch.float32)
    if x.is_contiguous():
        # As one sample of N·C channels: one call, and each map stays in the cache for both passes.
        flat = x.reshape(1, n * channels, *x.shape[2:])
        torch.batch_norm_update_stats(flat, mean.view(-1), variance.view(-1), 1.0)
    else:
        for i in range(n):
            torch.batch_norm_update_stats(x[i : i + 1], mean[i], variance[i], 1.0)
    return mean, variance


def _outer(*v: Tensor) -> Tensor:
    """Return Σ v·vᵀ over the samples of v's three entries, each (N, C), as (3, 3, C)."""
    products = {(i, j): (v[i] * v[j]).sum(0) for i in range(3) for j in range(i, 3)}
    rows = [[products[min(i, j), max(i, j)] for j in range(3)] for i in range(3)]
    return torch.stack([torch.stack(row) for row in rows])


def _about(scatter: Tensor, shift: Tensor, within: bool) -> Tensor:
    """Return the scatter about a mean that lies `shift` below its own: v becomes T·v.

    Σ(x − m + s) = a + s·n and Σ(x − m + s)² = q + 2s·a + s²·n; `within` samples, q stays.
    """
    one, zero = torch.ones_like(shift), torch.zeros_like(shift)
    squares = [zero, zero, one] if within else [shift.square(), 2 * shift, one]
    rows = [[one, zero, zero], [shift, one, zero], squares]
    t = torch.stack([torch.stack(row) for row in rows])
    return torch.einsum("iac,abc,jbc->ijc", t, scatter, t)


def _weights(weight: Tensor, like: Tensor) -> Tensor:
    weight = weight.to(like)
    if weight.shape != like.shape or not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(
            f"Expected `weight` to hold {len(like)} finite numbers of 0 or more, one a sample, "
            f"got shape {tuple(weight.shape)}"
        )
    return weight


def _double(x: Tensor) -> Tensor:
    """As float64; by way of the CPU where the device has none (Apple's mps)."""
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
