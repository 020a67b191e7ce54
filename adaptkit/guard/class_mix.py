"""Statistics corrected for a mix of classes that is not the source's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptkit.errors import EstimationError
from adaptkit.guard.class_moments import ClassMoments
from adaptkit.moments import Moments

_EPS = 1e-5  # added to variances, as batch norm does; dead channels have none
_ONE = 1e-6  # by which shares may miss a sum of 1


@dataclass(frozen=True)
class ClassMix:
    """A correction of norm statistics for the target's mix of classes.

    What the mix alone explains of the target's moments is taken out, and what is left, a gain and
    an offset in each channel, is what the change of domain did. With m_q and v_q the moments that
    the source's classes would have in the target's mix, m_t and v_t the target's, and m_s and v_s
    those in the source's own mix,

        g² = (v_t + ε) / (v_q + ε)
        mean = m_t + g·(m_s − m_q)        variance = g²·(v_s + ε) − ε

    With the source's own mix that is plain AdaBN, mean m_t and variance v_t. Without a change of
    domain it gives back the source's statistics, whatever the mix.

    A correction is called with a layer's name and moments, layer by layer within `estimate`:

        mix = ClassMix(class_moments(model, source, classes=10), shares)
        adapted = adapt(model, target, correction=mix)

    Args:
        source: what the norm layers see of each class.
        shares: shape (K,), the target's mix, 0 or more, of sum 1.

    Raises:
        EstimationError: the shares are not so.

    >>> seen = ClassMoments(
    ...     {"bn": torch.tensor([[0.0], [4.0]], dtype=torch.float64)},
    ...     {"bn": torch.tensor([[1.0], [1.0]], dtype=torch.float64)},
    ...     torch.tensor([3.0, 3.0], dtype=torch.float64),
    ... )
    >>> target = Moments.of(torch.tensor([[-1.0], [1.0]] * 500))  # the first class alone
    >>> mean, variance = ClassMix(seen, [1.0, 0.0])("bn", target)
    >>> round(mean.item(), 2), round(variance.item() / target.variance().item(), 2)
    (2.0, 5.0)
    """

    source: ClassMoments
    shares: Tensor | Sequence[float]

    def __post_init__(self) -> None:
        shares, wanted = self._shares(), self.source.classes
        if shares.shape != (wanted,):
            raise EstimationError(
                f"Expected the shares of {wanted} classes, got {tuple(shares.shape)}"
            )
        total = float(shares.sum())
        if not bool((shares >= 0).all()) or not abs(total - 1) <= _ONE * wanted:
            raise EstimationError(
                f"Expected shares of 0 or more that sum to 1, got a sum of {total:.6g} and a "
                f"least of {float(shares.min()):.6g}"
            )

    def _shares(self) -> Tensor:
        return torch.as_tensor(self.shares, dtype=torch.float64, device="cpu")

    def __call__(self, name: str, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return the mean and unbiased variance for a layer; its own where the source has none."""
        mean, variance = moments.mean, moments.variance()
        if name not in self.source.mean:
            return mean, variance
        own = self.source.mixed(name, self.source.shares)
        mixed = self.source.mixed(name, self._shares())
        m_s, v_s, m_q, v_q = (v.to(mean) for v in (*own, *mixed))
        square = (variance + _EPS) / (v_q + _EPS)
        corrected = square * (v_s + _EPS) - _EPS
        return mean + square.sqrt() * (m_s - m_q), torch.clamp_min(corrected, 0)
