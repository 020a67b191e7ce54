"""What a way to adapt is likely to change, by what ways like it changed in the benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptkit.guard.view import Floats

Integers = NDArray[np.int32]


class Outlook(NamedTuple):
    """What to expect of a way.

    Args:
        change: of accuracy, on average over the trees.
        spread: their standard deviation, of unlike trees in unlike cases.
    """

    change: float
    spread: float

    def cautious(self, caution: float) -> float:
        """Return the change less so many spreads.

        >>> Outlook(0.25, 0.1).cautious(0.5)
        0.2
        """
        return self.change - caution * self.spread


@dataclass(frozen=True, eq=False)
class Forecast:
    """Extremely randomised regression trees (Geurts et al. 2006, doi 10.1007/s10994-006-6226-1).

    AutoEval (Deng & Zheng 2021, arXiv 2007.02915) learns from many targets whose labels are known
    what accuracy is to be expected of another. Here it is the change of accuracy, of each way to
    adapt, against the source's statistics.

    A node sends an input down to the left where x[feature] ≤ threshold. Node i of a tree is a leaf
    where left[i] is i itself.

    Args:
        names: of the inputs, in order.
        ways: of the outputs.
        roots: shape (T,), the root of each tree.
        feature: shape (N,), of all nodes of all trees.
        threshold: shape (N,), float32.
        left: shape (N,).
        right: shape (N,).
        values: shape (N, W), float32, changes of accuracy; of inner nodes 0.

    >>> trees = [np.array(part, np.int32) for part in ([0], [0, 0, 0], [1, 1, 2], [2, 1, 2])]
    >>> found = [np.array(part, np.float32) for part in ([0.5, 0, 0], [[0], [-0.25], [0.75]])]
    >>> stump = Forecast(("severity",), ("early",), *trees[:2], found[0], *trees[2:], found[1])
    >>> stump.outlook({"severity": 0.5})["early"].change
    -0.25
    >>> stump.outlook({"severity": 0.6})["early"].change
    0.75
    """

    names: Sequence[str]
    ways: Sequence[str]
    roots: Integers
    feature: Integers
    threshold: NDArray[np.float32]
    left: Integers
    right: Integers
    values: NDArray[np.float32]

    def outlook(self, evidence: Mapping[str, float]) -> dict[str, Outlook]:
        """Return what to expect of each way.

        Args:
            evidence: name -> figure, of all `names`.
        """
        found = self.each_tree(np.array([[evidence[name] for name in self.names]]))[0]
        mean, spread = found.mean(0), found.std(0)
        return {
            way: Outlook(float(change), float(sd))
            for way, change, sd in zip(self.ways, mean, spread, strict=True)
        }

    def each_tree(self, inputs: Floats) -> Floats:
        """Return what every tree makes of inputs (N, F), shape (N, T, W)."""
        x = inputs.astype(np.float32)
        of = np.arange(len(x))[:, None]
        place = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        while not (self.left[place] == place).all():
            goes_left = x[of, self.feature[place]] <= self.threshold[place]
            place = np.where(goes_left, self.left[place], self.right[place])
        found: Floats = self.values[place].astype(np.float64)
        return found


@cache
def learned(calibrated: bool) -> Forecast:
    """Return a forecast that comes with adaptkit: `python -m benchmarks.learn` wrote it."""
    with (
        files("adaptkit.guard").joinpath(file_of(calibrated)).open("rb") as file,
        np.load(file, allow_pickle=False) as parts,
    ):
        known = {name: parts[name] for name in parts.files}
    return Forecast(**known | {name: tuple(map(str, known[name])) for name in ("names", "ways")})


def file_of(calibrated: bool) -> str:
    """Return the name of the file that a forecast is in."""
    return f"forecast-{'calibrated' if calibrated else 'uncalibrated'}.npz"
