"""Re-estimating normalisation statistics on unlabelled data."""

from adaptkit.estimation.run import Progress, estimate
from adaptkit.estimation.statistics import Statistics

__all__ = ["Progress", "Statistics", "estimate"]
