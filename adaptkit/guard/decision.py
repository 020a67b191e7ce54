"""Would adapting hurt? Decided without a label."""

from collections.abc import Mapping
from dataclasses import dataclass

from adaptkit.guard.view import Floats
from adaptkit.guard.ways import Way


@dataclass(frozen=True, eq=False)
class Decision:
    """What the guard chose, and why.

    Args:
        way: how the statistics are set.
        choice: "source", "full" (plain AdaBN), "early" (the first layers alone), "balanced" (every
            predicted class counts alike), or "corrected" (for the target's mix of classes).
        grounds: why, in plain words, a sentence each.
        figures: name -> figure behind it; None where it is unknown.
        shares: shape (K,), the target's mix of classes as estimated; None where it was not.
        calibrated: whether a calibration was at hand.
        samples: that it was decided on.
    """

    way: Way
    choice: str
    grounds: tuple[str, ...]
    figures: Mapping[str, float | None]
    shares: Floats | None
    calibrated: bool
    samples: int

    @property
    def adapts(self) -> bool:
        """Whether anything is to be changed."""
        return self.choice != "source"
