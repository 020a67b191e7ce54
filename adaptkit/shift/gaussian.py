"""Distances of two samples' means and covariances."""

import torch
from torch import Tensor

from adaptkit.shift.result import Sample, ShiftResult, checked, moments


def frechet(x: Sample, y: Sample) -> ShiftResult:
    """Return the squared Fréchet distance of Gaussians with the samples' moments, as FID does.

        |μ_x − μ_y|² + tr(Σ_x + Σ_y − 2·(Σ_x·Σ_y)^½)

    with unbiased covariances. In the unit of the features squared; 0 or more and never NaN, also
    for fewer rows than features: the last trace is the sum of the singular values of
    Σ_x^½·Σ_y^½, which exist for any covariances. Biased upwards, by tr(Σ)·(1/N + 1/M) in
    the first term and by more in the second (Chong & Forsyth 2020), so compare only values of
    equally many rows.

    Args:
        x: shape (N, D), N of 2 or more; an array or a tensor.
        y: shape (M, D), M of 2 or more.

    Raises:
        DataError: the samples are not two finite tables of as many features.

    O((N + M)·D² + D³) time, computed in float64.

    Source: Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500.

    >>> round(float(frechet([[0.0], [2.0]], [[5.0], [7.0]])), 6)
    25.0
    """
    a, b = checked(x, y)
    mean_a, cov_a = moments(a)
    mean_b, cov_b = moments(b)
    overlap = float(torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum())
    spread = float(cov_a.trace() + cov_b.trace())
    rest = spread - 2 * overlap
    # Rounding leaves about this much of what ought to be nothing.
    rest = 0.0 if abs(rest) < 1e-10 * spread else max(rest, 0.0)
    return ShiftResult(float((mean_a - mean_b).square().sum()) + rest, None, len(a), len(b))


def coral(x: Sample, y: Sample) -> ShiftResult:
    """Return the CORAL distance: how much the samples' covariances differ.

        |Σ_x − Σ_y|²_F / (4·D²)

    with unbiased covariances. In the unit of the features to the fourth power, 0 or more; blind to
    a shift of the mean. Biased upwards, so above 0 in expectation for samples of one distribution
    too, the more the fewer rows.

    Args:
        x: shape (N, D), N of 2 or more; an array or a tensor.
        y: shape (M, D), M of 2 or more.

    Raises:
        DataError: the samples are not two finite tables of as many features.

    O((N + M)·D²) time, computed in float64.

    Source: Sun & Saenko 2016, arXiv 1607.01719, equation 1.

    >>> float(coral([[0.0], [2.0]], [[0.0], [4.0]]))  # variances 2 and 8
    9.0
    """
    a, b = checked(x, y)
    difference = moments(a)[1] - moments(b)[1]
    return ShiftResult(
        float(difference.square().sum()) / (4 * a.shape[1] ** 2), None, len(a), len(b)
    )


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
