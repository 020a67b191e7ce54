"""What normalisation does to training: drift of layers' inputs, singular values of Jacobians."""

from adaptkit.diagnostics.drift import InternalCovariateShift, internal_covariate_shift
from adaptkit.diagnostics.jacobian import jacobian_singular_values, plot_singular_values

__all__ = [
    "InternalCovariateShift",
    "internal_covariate_shift",
    "jacobian_singular_values",
    "plot_singular_values",
]
