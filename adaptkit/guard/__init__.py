"""Adapting where the target has not the source's mix of classes, which AdaBN assumes."""

from adaptkit.guard.calibration import Calibration, calibrate
from adaptkit.guard.class_features import ClassFeatures
from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.class_moments import ClassMoments, class_moments
from adaptkit.guard.decide import decide, decided_statistics, guarded_statistics
from adaptkit.guard.decision import Decision

__all__ = [
    "Calibration",
    "ClassFeatures",
    "ClassMix",
    "ClassMoments",
    "Decision",
    "calibrate",
    "class_moments",
    "decide",
    "decided_statistics",
    "guarded_statistics",
]
