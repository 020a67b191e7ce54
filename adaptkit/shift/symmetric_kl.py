"""How far a layer's statistics lie from another domain's: AdaBN's own measure."""

from torch import Tensor


def symmetric_kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> float:
    """Return the symmetric Kullback-Leibler divergence of two diagonal Gaussians, per channel.

    With d = mean_a − mean_b, the mean over channels of KL(a‖b) + KL(b‖a):

        (var_a + d²) / (2 var_b) + (var_b + d²) / (2 var_a) − 1

    Args:
        mean_a: shape (C,).
        var_a: shape (C,), positive.
        mean_b: shape (C,), in the unit of `mean_a`.
        var_b: shape (C,), positive.

    Returns:
        In nats, 0 or more; 0 only for equal statistics. Computed in float64.

    Raises:
        ValueError: the shapes differ, or a variance is not positive.

    Source: Li et al. 2016, arXiv 1603.04779, equation 3.

    >>> import torch
    >>> zero, one = torch.zeros(2), torch.ones(2)
    >>> symmetric_kl(zero, one, zero, one), symmetric_kl(zero, one, one, one)
    (0.0, 1.0)
    """
    shapes = [tuple(t.shape) for t in (mean_a, var_a, mean_b, var_b)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"Expected four vectors of one length, got shapes {shapes}")
    a, b = var_a.double().cpu(), var_b.double().cpu()
    if not bool((a > 0).all() and (b > 0).all()):
        raise ValueError("Expected positive variances: add the layer's eps to both")
    squared = (mean_a.double().cpu() - mean_b.double().cpu()).square()
    # ((a − b)² + (a + b)·d²) / (2ab): the same as the sum above, but nothing cancels near 0.
    divergence = ((a - b).square() + (a + b) * squared) / (2 * a * b)
    return float(divergence.mean())
