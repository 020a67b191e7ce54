"""Sliced Wasserstein distance: transport between two samples, seen from random directions."""

import torch
from torch import Tensor

from adaptkit.errors import DataError
from adaptkit.shift.result import Sample, ShiftResult, blocks, checked, wide


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
    gap = _sorted(a, theta)[below // m] - _sorted(b, theta)[below // n]
    squared = widths @ gap.square_()
    return ShiftResult(float(squared.mean().sqrt()), None, n, m)


def _sorted(x: Tensor, theta: Tensor) -> Tensor:
    return torch.cat([wide(block) @ theta for block in blocks(x)]).sort(0).values
