"""Sliced Wasserstein distance: transport between two samples, seen from random directions."""

import torch
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.shift.result import Sample, ShiftResult, blocks, checked, wide

_AT_A_TIME = 128  # projections


def sliced_wasserstein(
    x: Sample, y: Sample, *, projections: int = 128, seed: int = 0
) -> ShiftResult:
    """Return the sliced Wasserstein-2 distance of two samples.

    The root of the mean, over random unit vectors θ, of the squared distance W₂² between the
    projections θ·x and θ·y, each exact in one dimension: ∫(F⁻¹(q) − G⁻¹(q))² dq.

    In the unit of the features, 0 or more; about 1/√D of the Wasserstein distance for a shift of
    the mean. Above 0 in expectation for samples of one distribution, the more the fewer rows.

    Args:
        x: shape (N, D); an array or a tensor.
        y: shape (M, D); M need not equal N.
        projections: how many directions.
        seed: decides these.

    Raises:
        DataError: the samples are not two finite tables of as many features, or `projections` is
            below 1.

    O((N + M)·D·projections) time, computed in float64.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51.

    >>> round(float(sliced_wasserstein([[0.0], [1.0]], [[3.0], [4.0]])), 6)
    3.0
    """
    a, b = checked(x, y, least=1)
    if projections < 1:
        raise DataError(f"Expected projections to be 1 or more, got {projections}")
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(a.shape[1], projections, dtype=torch.float64, generator=generator)
    theta /= theta.norm(dim=0)
    n, m = len(a), len(b)
    # Both quantile functions are constant between neighbours of these levels, in units of 1/(nm).
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(levels, prepend=torch.zeros(1, dtype=torch.int64)).double() / (n * m)
    below = levels - 1
    squared = torch.zeros((), dtype=torch.float64)
    for some in theta.split(_AT_A_TIME, dim=1):
        of_a, of_b = _projected(a, some), _projected(b, some)
        for k in range(some.shape[1]):
            gap = of_a[k].sort().values[below // m] - of_b[k].sort().values[below // n]
            squared += widths @ gap.square_()
    return ShiftResult(float((squared / projections).sqrt()), None, n, m)


def _projected(x: Tensor, theta: Tensor) -> Tensor:
    """Shape (projections, N)."""
    found = torch.empty(theta.shape[1], len(x), dtype=torch.float64)
    for block, place in zip(blocks(x), found.split([len(b) for b in blocks(x)], 1), strict=True):
        torch.mm(theta.T, wide(block).T, out=place)
    return found
