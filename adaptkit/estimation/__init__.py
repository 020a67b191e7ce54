"""Re-estimating normalisation statistics on unlabelled data."""

from adaptkit.estimation.bank import DomainBank
from adaptkit.estimation.certificate import Certificate, certify
from adaptkit.estimation.online import OnlineAdapter
from adaptkit.estimation.resuming import Resume
from adaptkit.estimation.run import Progress, estimate
from adaptkit.estimation.statistics import Statistics

__all__ = [
    "Certificate",
    "DomainBank",
    "OnlineAdapter",
    "Progress",
    "Resume",
    "Statistics",
    "certify",
    "estimate",
]
