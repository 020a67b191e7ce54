"""Normalisation layers that torch lacks, and ways from one normalisation to another."""

from adaptkit.layers.adain import AdaptiveInstanceNorm, Style, adaptive_instance_norm, restyle
from adaptkit.layers.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    RenormSchedule,
)
from adaptkit.layers.conversion import Conversion
from adaptkit.layers.convert import convert_norm
from adaptkit.layers.fold import fold_batchnorm
from adaptkit.layers.ibn import IBN
from adaptkit.layers.weight_norm import add_weight_norm, remove_weight_norm

__all__ = [
    "IBN",
    "AdaptiveInstanceNorm",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Conversion",
    "RenormSchedule",
    "Style",
    "adaptive_instance_norm",
    "add_weight_norm",
    "convert_norm",
    "fold_batchnorm",
    "remove_weight_norm",
    "restyle",
]
