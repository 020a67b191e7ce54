"""Adapting where the target has not the source's mix of classes, which AdaBN assumes."""

from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.class_moments import ClassMoments, class_moments
from adaptkit.guard.input_fit import InputFit, fit_input

__all__ = ["ClassMix", "ClassMoments", "InputFit", "class_moments", "fit_input"]
