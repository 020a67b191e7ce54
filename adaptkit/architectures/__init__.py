"""From the name of an architecture to a model, with nothing downloaded."""

from adaptkit.architectures.argument import argument
from adaptkit.architectures.building import (
    arguments_of,
    build,
    default_transform,
    runs_code,
    without_memory,
)
from adaptkit.architectures.own import OWN

__all__ = [
    "OWN",
    "argument",
    "arguments_of",
    "build",
    "default_transform",
    "runs_code",
    "without_memory",
]
