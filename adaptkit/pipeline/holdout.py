"""Which of a target's images are adapted to, and which are scored."""

import torch

from adaptkit.data import ImageLoader
from adaptkit.errors import DataError


def check_holdout(holdout: float) -> None:
    """Raise DataError unless this is a share that can be held out."""
    if not 0 <= holdout < 1:
        raise DataError(f"Expected holdout to be 0 or more and below 1, got {holdout}")


def parts(loader: ImageLoader, holdout: float, seed: int) -> tuple[ImageLoader, ImageLoader]:
    """Return what to adapt to and what to score: the same, or two parts drawn at random.

    Raises:
        DataError: there are fewer than two images to part.
    """
    if not holdout:
        return loader, loader
    n = len(loader.listing.paths)
    kept = min(max(round(holdout * n), 1), n - 1)
    if n < 2:
        raise DataError(f"Expected two images or more to hold some out, got {n}")
    # In another order than the one that the statistics' sample is drawn in.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    return loader.subset(sorted(order[kept:])), loader.subset(sorted(order[:kept]))
