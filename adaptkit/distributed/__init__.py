"""Several processes that work on one thing: statistics, evaluations, features of all their data."""

from adaptkit.distributed.sharing import Share, Whole
from adaptkit.distributed.world import ALONE, World, alone, one_process, over, world

__all__ = ["ALONE", "Share", "Whole", "World", "alone", "one_process", "over", "world"]
