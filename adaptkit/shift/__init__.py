"""How far two domains lie apart: metrics between samples, between statistics, between classes."""

from adaptkit.shift.classifier import c2st_auc, proxy_a_distance
from adaptkit.shift.energy_distance import energy
from adaptkit.shift.gaussian import coral, frechet
from adaptkit.shift.kolmogorov_smirnov import ks_fraction
from adaptkit.shift.mmd import mmd2
from adaptkit.shift.result import ShiftResult
from adaptkit.shift.symmetric_kl import symmetric_kl
from adaptkit.shift.wasserstein import sliced_wasserstein

__all__ = [
    "ShiftResult",
    "c2st_auc",
    "coral",
    "energy",
    "frechet",
    "ks_fraction",
    "mmd2",
    "proxy_a_distance",
    "sliced_wasserstein",
    "symmetric_kl",
]
