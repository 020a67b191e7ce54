"""How far a layer's statistics lie from another domain's: AdaBN's own measure."""

import torch

from adaptkit.errors import DataError
from adaptkit.shift.result import Sample, ShiftResult, as_tensor, wide


def symmetric_kl(mean_a: Sample, var_a: Sample, mean_b: Sample, var_b: Sample) -> ShiftResult:
    """Return the symmetric Kullback-Leibler divergence of two diagonal Gaussians, per channel.

    With d = mean_a − mean_b, the mean over channels of KL(a‖b) + KL(b‖a):

        (var_a + d²) / (2 var_b) + (var_b + d²) / (2 var_a) − 1

    In nats, 0 or more, and 0 only for equal statistics. Between the moments of samples of one
    distribution it is above 0 in expectation, by about 2/N + 2/M for normal features.

    Args:
        mean_a: shape (C,); an array or a tensor.
        var_a: shape (C,), positive.
        mean_b: shape (C,), in the unit of `mean_a`.
        var_b: shape (C,), positive.

    Returns:
        ShiftResult; n and m are C, since how many samples the statistics are of is not known here.

    Raises:
        DataError: the shapes differ, a number is not finite, or a variance is not positive.

    O(C) time, computed in float64.

    Source: Li et al. 2016, arXiv 1603.04779, equation 3.

    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> float(symmetric_kl(zero, one, zero, one)), float(symmetric_kl(zero, one, one, one))
    (0.0, 1.0)
    """
    given = {"mean_a": mean_a, "var_a": var_a, "mean_b": mean_b, "var_b": var_b}
    tensors = [wide(as_tensor(values, name)) for name, values in given.items()]
    shapes = [tuple(t.shape) for t in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise DataError(f"Expected four vectors of one length, got shapes {shapes}")
    if not bool(torch.stack(tensors).isfinite().all()):
        raise DataError("Expected finite means and variances, got NaN or infinity")
    first, a, second, b = tensors
    if not bool((a > 0).all() and (b > 0).all()):
        raise DataError("Expected positive variances: add the layer's eps to both")
    squared = (first - second).square()
    # ((a − b)² + (a + b)·d²) / (2ab): the same as the sum above, but nothing cancels near 0.
    divergence = ((a - b).square() / a + (a + b) * (squared / a)) / (2 * b)
    return ShiftResult(float(divergence.mean()), None, *shapes[0], *shapes[0])
