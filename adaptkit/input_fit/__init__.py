"""A gain and an offset of the model's input, sign included, that bring a target to the source."""

from adaptkit.input_fit.fit import InputFit, fit_input

__all__ = ["InputFit", "fit_input"]
