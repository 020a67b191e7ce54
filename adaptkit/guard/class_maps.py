"""What the inputs of each class look like on average, and what mix of classes a target's show."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.special import betaln, xlogy
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]

SIDE = 14  # places along an axis that an input is averaged down to
LEAST = 0.1  # of the largest share, below which a class is taken for absent
DRAWS, SIZE = 30, 200  # mixes of the source that `error` is measured on, and images in each
DIRICHLET = 0.5  # that these mixes are drawn from
CERTAIN = 0.6  # of the error of equal shares, up to which maps tell of a mix


class MapShares(NamedTuple):
    """What a mean map shows.

    Args:
        shares: shape (K,), the mix of classes.
        gain: of the contrast against the source's; negative where light and dark have changed.
        explained: the share of the map's variance that the classes' maps explain, R².
    """

    shares: Floats
    gain: float
    explained: float


def _in_both(half: NDArray[np.bool_], labels: NDArray[np.int64], k: int) -> list[int]:
    """Return the classes that have samples in both halves."""
    return [c for c in range(k) if half[labels == c].any() and (~half)[labels == c].any()]


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Mean inputs of each class, averaged down to 14 places an axis, less each channel's mean.

    Where images are aligned, as digits and clothes are, these differ from class to class,
    and a gain and an offset in each channel do not change that. Where they are not, `error` says
    that they tell nothing.

    Args:
        maps: shape (K, C, …), μ_k.
        error: the mean of Σ|q̂ − q| over mixes q of source samples that the maps had not seen.
    """

    maps: Floats
    error: float

    @classmethod
    def of(cls, places: Floats, labels: NDArray[np.int64], k: int) -> "ClassMaps":
        """Take them from what `in_places` gives of labelled samples, (N, C, …), of K classes."""
        half = np.arange(len(labels)) % 2 == 0
        known = _in_both(half, labels, k)
        if len(known) < k:  # the classes alternate, or one is rare: halve each by itself
            for c in range(k):
                half[labels == c] = np.arange((labels == c).sum()) % 2 == 0
            known = _in_both(half, labels, k)
        rng = np.random.default_rng(0)
        maps = np.stack([mean_map(places[half & (labels == c)]) for c in known])
        others = [np.flatnonzero(~half & (labels == c)) for c in known]
        errors = []
        for _ in range(DRAWS):
            counts = rng.multinomial(SIZE, rng.dirichlet(np.full(len(known), DIRICHLET)))
            drawn = [rng.choice(o, n) for o, n in zip(others, counts, strict=True)]
            found = _fitted(mean_map(places[np.concatenate(drawn)]), maps)
            errors.append(np.abs(found.shares - counts / SIZE).sum())
        whole = np.stack([mean_map(places[labels == c]) for c in range(k)])
        return cls(whole, float(np.mean(errors)))

    @property
    def tell(self) -> bool:
        """Whether the maps tell of a mix: more than taking all shares for equal does.

        >>> few, many = np.zeros((3, 1, 14, 14)), np.zeros((10, 1, 14, 14))
        >>> ClassMaps(few, 0.5).tell, ClassMaps(many, 0.5).tell
        (False, True)
        """
        return self.error <= CERTAIN * error_of_equal_shares(len(self.maps))

    def shares(self, seen: Floats) -> MapShares:
        """Fit a mean map, (C, …), by m ≈ g·Σ_k q_k·μ_k with q_k ≥ 0, Σq = 1 and g of either sign.

        Classes whose share is below a tenth of the largest are left out, and the rest fitted again.

        Source: non-negative least squares, Lawson & Hanson 1974.

        >>> maps = ClassMaps(np.array([[[1.0, -1, 0]], [[0.0, 1, -1]]]), 0.0)
        >>> found = maps.shares(3 * (0.75 * maps.maps[0] + 0.25 * maps.maps[1]))
        >>> found.shares.round(2).tolist(), round(found.gain, 2)
        ([0.75, 0.25], 3.0)
        """
        return _fitted(seen, self.maps)


def error_of_equal_shares(k: int) -> float:
    """Return the mean of Σ|1/K − q| over mixes q as `ClassMaps.error` is measured on.

    K times the mean absolute deviation of a share, which is distributed as Beta(α, (K − 1)·α):
    2·α^α·β^β / (B(α, β)·(α + β)^(α + β + 1)), Johnson, Kotz & Balakrishnan 1995, vol. 2, ch. 25.

    >>> [round(error_of_equal_shares(k), 2) for k in (2, 3, 10, 1000)]
    [0.64, 0.77, 0.92, 0.97]
    """
    a, b = DIRICHLET, DIRICHLET * (k - 1)
    total = a + b
    log = xlogy(a, a) + xlogy(b, b) - betaln(a, b) - xlogy(total + 1, total)
    return float(2 * k * np.exp(log))


def in_places(x: Tensor) -> Floats | None:
    """Average inputs (N, C, …) down to at most 14 places an axis; None of inputs without places."""
    if not 3 <= x.ndim <= 5 or not x.is_floating_point():
        return None
    pool: Any = {
        3: functional.adaptive_avg_pool1d,
        4: functional.adaptive_avg_pool2d,
        5: functional.adaptive_avg_pool3d,
    }[x.ndim]
    found: Tensor = pool(x.detach().float(), [min(SIDE, side) for side in x.shape[2:]])
    return np.asarray(found.cpu().double().numpy())


def mean_map(places: Floats) -> Floats:
    """Return the mean over samples, less each channel's mean over places, (C, …)."""
    mean = places.mean(0)
    return np.asarray(mean - mean.mean(tuple(range(1, mean.ndim)), keepdims=True))


def _fitted(seen: Floats, maps: Floats) -> MapShares:
    if seen.shape != maps.shape[1:]:
        return MapShares(np.full(len(maps), 1 / len(maps)), 0.0, 0.0)
    kept = np.ones(len(maps), bool)
    while True:
        part, gain, explained = _signed(seen, maps[kept])
        shares = np.zeros(len(maps))
        shares[kept] = part
        above = shares > LEAST * shares.max()
        if not gain or (above == kept).all():
            return MapShares(shares, gain, explained)
        kept = above


def _signed(seen: Floats, maps: Floats) -> tuple[Floats, float, float]:
    columns, wanted = maps.reshape(len(maps), -1).T, seen.ravel()
    positive, rest = scipy.optimize.nnls(columns, wanted)
    negative, worse = scipy.optimize.nnls(columns, -wanted)
    found, rest, sign = (positive, rest, 1) if rest <= worse else (negative, worse, -1)
    total, whole = float(found.sum()), float(wanted @ wanted)
    if not total or not whole:
        return np.full(len(maps), 1 / len(maps)), 0.0, 0.0
    return found / total, sign * total, 1 - rest**2 / whole
