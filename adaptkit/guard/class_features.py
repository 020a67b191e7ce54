"""Where the pooled features of each class of the source lie, and how far others are from there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_AXES = 128  # of the covariance that are kept; along the others it counts as the same
RIDGE = 0.01  # of the mean variance, added to all: features that hardly vary are not exact
_LEAST = 1e-12  # mean variance of features that are constant within each class


@dataclass(frozen=True)
class ClassFeatures:
    """Class means of pooled features, and the covariance that all classes share.

    The covariance is Σ = U·diag(λ)·Uᵀ + ρ·(1 − U·Uᵀ), of the features about their class's mean.

    Args:
        means: shape (K, D), μ.
        axes: shape (D, R), U, of orthonormal columns.
        variances: shape (R,), λ, above 0.
        rest: ρ, above 0, the mean variance along all other axes.
    """

    means: Floats
    axes: Floats
    variances: Floats
    rest: float

    @classmethod
    def of(
        cls, features: NDArray[np.float32], labels: NDArray[np.int64], k: int
    ) -> "ClassFeatures":
        """Take them from features (N, D) of labelled samples, some of each of K classes.

        >>> x = np.array([[0, 0], [2, 0], [5, 5], [7, 5]], np.float32)
        >>> ClassFeatures.of(x, np.array([0, 0, 1, 1]), 2).means.tolist()
        [[1.0, 0.0], [6.0, 5.0]]
        """
        x = features.astype(np.float64)
        sums = np.zeros((k, x.shape[1]))
        np.add.at(sums, labels, x)
        means = sums / np.bincount(labels, minlength=k)[:, None]
        x -= means[labels]
        covariance = x.T @ x / len(x)
        width = len(covariance)
        ridge = RIDGE * max(float(np.trace(covariance)) / width, _LEAST)
        values, vectors = np.linalg.eigh(covariance)
        values = values.clip(0) + ridge
        kept = min(MOST_AXES, width)
        rest = float(values[:-kept].mean()) if kept < width else ridge
        return cls(means, vectors[:, -kept:], values[-kept:], rest)

    def short(self, axes: int) -> "ClassFeatures":
        """Return the same with at most so many axes, the variance along the others averaged."""
        width, known = self.axes.shape
        if axes >= known:
            return self
        left = self.variances[:-axes].sum() + self.rest * (width - known)
        kept = self.axes[:, -axes:], self.variances[-axes:]
        return ClassFeatures(self.means, *kept, float(left / (width - axes)))

    def distances(self, features: NDArray[np.float32]) -> Floats:
        """Return squared Mahalanobis distances (z − μ)ᵀ·Σ⁻¹·(z − μ), shape (N, K)."""
        z = features.astype(np.float64)
        along = _squares(z @ self.axes / self._sd, self.means @ self.axes / self._sd)
        in_axes = _squares(z @ self.axes, self.means @ self.axes)
        others = (_squares(z, self.means) - in_axes).clip(0)
        return along + others / self.rest

    @property
    def _sd(self) -> Floats:
        return np.sqrt(self.variances)


def distance(known: ClassFeatures | None, features: NDArray[np.float32] | None) -> float:
    """Return the mean squared Mahalanobis distance to the nearest class; NaN where unknown."""
    if known is None or features is None:
        return float("nan")
    return float(known.distances(features).min(1).mean())


def _squares(a: Floats, b: Floats) -> Floats:
    """Return squared Euclidean distances, (N, K), a row of a to a row of b."""
    centre = b.mean(0)  # nothing large to cancel
    a, b = a - centre, b - centre
    found = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(found.clip(0))
