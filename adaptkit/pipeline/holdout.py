"""Which of a target's images are adapted to, and which are scored."""

from collections.abc import Sequence

import torch

from adaptkit.data import ImageLoader
from adaptkit.errors import DataError


def check_holdout(holdout: float) -> None:
    """Raise DataError unless this is a share that can be held out."""
    if not 0 <= holdout < 1:
        raise DataError(f"Expected holdout to be 0 or more and below 1, got {holdout}")


def split(count: int, holdout: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return which of `count` images to adapt to and which to score: all, or two parts at random.

    Raises:
        DataError: there are fewer than two images to part.

    >>> split(3, 0, 0)
    (range(0, 3), range(0, 3))
    >>> adapted_to, scored = split(9, 0.5, 0)
    >>> len(adapted_to), sorted({*adapted_to, *scored}) == [*range(9)]
    (5, True)
    """
    if not holdout:
        return range(count), range(count)
    kept = min(max(round(holdout * count), 1), count - 1)
    if count < 2:
        raise DataError(f"Expected two images or more to hold some out, got {count}")
    # In another order than the one that the statistics' sample is drawn in.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    return sorted(order[kept:]), sorted(order[:kept])


def parts(loader: ImageLoader, holdout: float, seed: int) -> tuple[ImageLoader, ImageLoader]:
    """Return what to adapt to and what to score (see `split`).

    Raises:
        DataError: there are fewer than two images to part.
    """
    if not holdout:
        return loader, loader
    to_adapt, to_score = split(len(loader.listing), holdout, seed)
    return loader.subset(to_adapt), loader.subset(to_score)
