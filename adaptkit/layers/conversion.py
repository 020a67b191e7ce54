"""What a conversion of a model's layers returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Conversion:
    """A converted model, and what was done to it.

    Args:
        model: the converted one.
        changes: name of a layer -> what it was, what it is, and what that does to outputs.
        left: name of a layer -> why it was left as it is.
    """

    model: nn.Module
    changes: Mapping[str, str]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {said}" for name, said in self.changes.items()]
        lines += [f"{name}: left, {said}" for name, said in self.left.items()]
        return "\n".join(lines) or "nothing to convert"
