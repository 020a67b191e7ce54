"""Whether a target's shift is one that another mix of classes could not have caused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit.moments import Moments, PerSample
from adaptkit.norms import Stored

_EPS = 1e-5
DRAWS = 1000
SIZE = 32  # images in a draw: few, so that the spread is that of the smallest targets
AT = (0.5, 0.9, 0.95, 0.99)  # what `spread` gives quantiles at
TYPICAL_AT = 0.95  # higher ones differ by chance from net to net


def severity(moments: Mapping[str, Moments], stored: Mapping[str, Stored]) -> float:
    """Say how untypical a target is of the source, classes aside; 0 is typical.

    With m and v what layer l stores, and h its input behind the source's statistics,

        t_l = log mean_c E[(h_c − m_c)²] / v_c        severity = max_l |t_l|

    Classes that are missing move single channels up and down, but hardly the mean over channels of
    the second moment about the source's mean; a change of domain moves it everywhere.

    Args:
        moments: of each layer's input, in a run with the source's statistics.
        stored: what each layer stores.

    >>> from adaptkit import Moments
    >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    >>> round(severity({"bn": Moments.of(x)}, {"bn": Stored(torch.zeros(3), torch.ones(3), 0)}), 1)
    0.0
    """
    found = [0.0]
    for name, seen in moments.items():
        m, v = stored[name].mean.to(seen.mean), stored[name].variance.to(seen.mean)
        square = seen.variance() + (seen.mean - m).square()
        found.append(abs(math.log(float((square / (v + _EPS)).mean()) + _EPS)))
    return max(found)


def typical(quantiles: Sequence[float]) -> float:
    """Return the severity up to which images are typical, of what `spread` gave."""
    return quantiles[AT.index(TYPICAL_AT)]


@dataclass
class Watch:
    """Notes E[(h − m)²] / v, averaged over channels, of each sample at each norm layer.

    The values of all visits that one forward pays to a layer count together, as in its moments.

    Args:
        stored: what each layer stores.
    """

    stored: Mapping[str, Stored]
    _visits: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)  # of one forward
    _seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def hooks(self, layers: Mapping[str, nn.Module]) -> list[Any]:
        """Register what notes it on the layers; the handles are to be removed."""
        return [
            layer.register_forward_pre_hook(partial(self._note, name), with_kwargs=True)
            for name, layer in layers.items()
        ]

    def _note(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = PerSample.of(args[0] if args else next(iter(kwargs.values())))
        m, v = self.stored[name].mean.to(seen.mean), self.stored[name].variance.to(seen.mean)
        square = seen.m2.to(seen.mean) / seen.values + (seen.mean - m).square()
        average = (square / (v + _EPS)).mean(1).cpu().double()
        self._visits.setdefault(name, []).append((seen.values, average))

    def take(self) -> None:
        """Keep what was noted since the last call, in one forward."""
        for name, visits in self._visits.items():
            total = sum(values for values, _ in visits)
            pooled = torch.stack([average * values / total for values, average in visits]).sum(0)
            self._seen.setdefault(name, []).append(pooled)
        self._visits.clear()

    def found(self) -> NDArray[np.float64]:
        """Return shape (N, L)."""
        return torch.stack([torch.cat(parts) for parts in self._seen.values()], 1).numpy()


def spread(
    squares: NDArray[np.float64], labels: NDArray[np.int64], *, seed: int = 0
) -> tuple[float, ...]:
    """Return quantiles of the severity that the source itself shows, whatever its mix of classes.

    Of 1,000 draws of 32 samples, each from one, two, three, five, seven or all classes.

    Args:
        squares: shape (N, L), what `Watch` noted of the source.
        labels: shape (N,).
        seed: of the draws.

    Returns:
        The quantiles at 0.5, 0.9, 0.95 and 0.99.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    sizes = [count for count in (1, 2, 3, 5, 7) if count < len(members)] + [len(members)]
    found = []
    for _ in range(DRAWS):
        present = rng.choice(len(members), rng.choice(sizes), replace=False)
        chosen = [rng.choice(members[k]) for k in rng.choice(present, SIZE)]
        found.append(np.abs(np.log(squares[chosen].mean(0) + _EPS)).max())
    return tuple(float(q) for q in np.quantile(found, AT))
