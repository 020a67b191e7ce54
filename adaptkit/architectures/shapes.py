"""From the shapes in a state dict to the number of classes, by building without memory."""

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from adaptkit.architectures.architecture import StateDict
from adaptkit.errors import CheckpointError

_PRIMES = 1009, 1013  # numbers of classes that are no model's widths

Shape = tuple[int, ...]


class WithoutMemory(TorchFunctionMode):
    """Tensors get shapes but no memory, while the sums that some constructors do stay real."""

    MAKERS = (torch.empty, torch.ones, torch.zeros)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make a tensor on the "meta" device, where one is made."""
        options = {**(kwargs or {}), "device": "meta"} if func in self.MAKERS else (kwargs or {})
        return func(*args, **options)


def class_count(
    make: Callable[..., nn.Module], arguments: Mapping[str, Any], state_dict: StateDict
) -> dict[str, int]:
    """Find num_classes: what the sizes are that follow it when a model is built for two numbers.

    A size may be a multiple, as where a detector has several anchors, and have a constant part, as
    where a background is added. All that follow have to say the same.

    Args:
        make: the constructor.
        arguments: for it, but for num_classes.
        state_dict: with the sizes to be explained.

    >>> make = lambda num_classes: nn.Linear(8, 4 * num_classes + 4)
    >>> class_count(make, {}, nn.Linear(8, 24).state_dict())
    {'num_classes': 5}
    """
    with suppress(CheckpointError):  # of a user's factory, which may need real tensors
        one, other = (_shapes(make, {**arguments, "num_classes": n}) for n in _PRIMES)
        counts = {
            _count(tuple(value.shape), one[key], other[key])
            for key, value in state_dict.items()
            if key in one and key in other and one[key] != other[key]
        } - {None}
        if len(counts) == 1 and (found := counts.pop()):
            return {"num_classes": found}
    return {}


def _shapes(make: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, Shape]:
    with WithoutMemory(), redirect_stderr(io.StringIO()):
        state_dict = make(**arguments).state_dict()
    return {key: tuple(value.shape) for key, value in state_dict.items() if not is_lazy(value)}


def _count(found: Shape, one: Shape, other: Shape) -> int | None:
    """Return the number of classes that makes a shape the found one, 0 if no number does.

    None is of shapes that say nothing: what follows is not the first dimension alone.
    """
    if not found or not one or not other or not found[1:] == one[1:] == other[1:]:
        return None
    rows, apart = divmod(other[0] - one[0], _PRIMES[1] - _PRIMES[0])
    if apart or rows < 1:
        return None
    count, rest = divmod(found[0] - (one[0] - rows * _PRIMES[0]), rows)
    return 0 if rest or count < 1 else count
