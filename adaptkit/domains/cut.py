"""The cut that tells most apart: a line through images' statistics and a place on it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHARE = 0.1  # of the images, that either part has at least
FEWEST = 20  # images, likewise
_MARGIN = 0.8  # of SHARE, where cuts are looked for: smaller groups are seen, and then refused
_AXES = 10  # principal axes
_FLOOR = 0.003  # of the variance, which an axis has at least
_SOFT = 0.1  # source standard deviations, added to spreads: what hardly varies is not blown up
_ROUNDS = 5


@dataclass(frozen=True)
class Cut:
    """Two parts: images with weight · statistics at the threshold or above, and those below.

    Args:
        weight: shape (D,), float64.
        threshold: in the middle between the parts' nearest images.
        separation: of the parts' means along `weight`, in pooled standard deviations.
    """

    weight: Tensor
    threshold: float
    separation: float

    def above(self, statistics: Tensor) -> Tensor:
        """Return which rows of statistics, shape (N, D), are in the upper part, shape (N,)."""
        return statistics @ self.weight >= self.threshold


def best_cut(statistics: Tensor) -> Cut | None:
    """Return the cut of the largest separation, or None where no part would be large enough.

    Statistics are standardised (by their standard deviation and 0.1 more) and turned into up to 10
    principal axes, whitened. From each statistic and each axis by itself, take by turns

        the parts, by Otsu's threshold: t = argmax n_a·n_b·(m_b − m_a)²
        the line between their means: w ∝ m_b − m_a

    w is Fisher's direction, since the parts' covariance within is that of whitened axes, I, less
    the multiple of w·wᵀ between. The separation along w is

        (w·m_b − w·m_a) / √(mean variance of w·x within the parts)

    A Gaussian cut in half has 2.65, for any line through it. Each part has a tenth of the images or
    more, and 20.

    Args:
        statistics: shape (N, D), float64, finite.

    Source: Otsu 1979, IEEE Trans. SMC 9(1); Fisher 1936, Annals of Eugenics 7(2).

    >>> x = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> x[:30, 2] += 50
    >>> cut = best_cut(x)
    >>> sorted(torch.bincount(cut.above(x).long()).tolist()), cut.separation > 8
    ([30, 70], True)
    """
    n = len(statistics)
    fewest = max(FEWEST, math.ceil(SHARE * n))
    if n < 2 * fewest:
        return None
    mean = statistics.mean(0)
    spread = statistics.std(0, correction=0) + _SOFT
    scaled = (statistics - mean) / spread
    turn = _whitening(scaled)
    if turn is None:
        return None
    axes = scaled @ turn
    above = _halved(torch.cat([scaled, axes], 1))[0]
    for _ in range(_ROUNDS):
        lines = _between_means(axes, above)
        above, thresholds = _halved(axes @ lines)
    separations = _separations(axes @ lines, above, fewest)
    best = int(separations.argmax())
    if not separations[best] > 0:
        return None
    weight = turn @ lines[:, best] / spread
    return Cut(weight, float(thresholds[best] + mean @ weight), float(separations[best]))


def _whitening(scaled: Tensor) -> Tensor | None:
    """Return what turns rows (N, D) of mean 0 into main axes of variance 1, shape (D, k)."""
    _, s, vt = torch.linalg.svd(scaled, full_matrices=False)
    power = s.square()
    kept = min(_AXES, int((power > _FLOOR * power.sum()).sum()))
    return vt[:kept].T / s[:kept] * math.sqrt(len(scaled)) if kept else None


def _halved(values: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each column of (N, M) by Otsu; return which are above, (N, M), and thresholds, (M,)."""
    n = len(values)
    least = max(1, int(_MARGIN * SHARE * n))
    ordered = values.sort(0).values
    below = torch.arange(least, n - least + 1, dtype=values.dtype)[:, None]  # how many are
    sums = ordered.cumsum(0)
    low = sums[least - 1 : n - least]
    gap = (sums[-1] - low) / (n - below) - low / below
    place = least + (gap.square() * below * (n - below)).argmax(0, keepdim=True)
    thresholds = (ordered.gather(0, place - 1) + ordered.gather(0, place)) / 2
    return values >= thresholds, thresholds[0]


def _between_means(axes: Tensor, above: Tensor) -> Tensor:
    """Return the unit vectors between the means of parts, (k, M), for M ways to part (N, M)."""
    upper = above.to(axes)
    size = upper.sum(0)
    total = axes.T @ upper  # of the upper part; the lower one's is its negative
    lines = total / size.clamp_min(1) + total / (len(axes) - size).clamp_min(1)
    length: Tensor = torch.linalg.vector_norm(lines, dim=0)
    return lines / length.clamp_min(1e-12)


def _separations(along: Tensor, above: Tensor, fewest: int) -> Tensor:
    """Return the separations along lines, (M,), of parts (N, M); 0 where a part is too small."""
    upper = above.to(along)
    size = upper.sum(0)
    rest = len(along) - size
    high = (along * upper).sum(0) / size.clamp_min(1)
    low = (along * (1 - upper)).sum(0) / rest.clamp_min(1)
    within = (along - low.lerp(high, upper)).square().mean(0)
    large = torch.minimum(size, rest) >= fewest
    return ((high - low) / within.sqrt().clamp_min(1e-9)) * large
