"""Adapting where the target has not the source's mix of classes, which AdaBN assumes."""

from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.class_moments import ClassMoments, class_moments

__all__ = ["ClassMix", "ClassMoments", "class_moments"]
