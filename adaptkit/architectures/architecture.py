"""What is known of an architecture: how it is made, and what a state dict shows of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptkit.errors import CheckpointError
from adaptkit.transform import Transform

StateDict = Mapping[str, Tensor]

# What constructors raise on arguments that they do not check.
BAD_ARGUMENTS = (
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
)


def _shows_nothing(_: StateDict) -> dict[str, Any]:
    return {}


def _as_made(model: nn.Module, _: StateDict) -> nn.Module:
    return model


def _none_published() -> Transform | None:
    return None


@dataclass(frozen=True)
class Architecture:
    """An architecture that a spec names.

    Args:
        make: the constructor; it takes arguments by name and returns a model with fresh weights.
        counts_classes: whether `num_classes` is one of them, to be found in the shapes.
        shows: from a state dict to those that its keys show beside the number of classes.
        suit: gives a model the layers that the state dict was made with, where their kind shows in
            the keys alone.
        transform: returns the evaluation transform published with its weights, None without one.
    """

    make: Callable[..., nn.Module]
    counts_classes: bool = True
    shows: Callable[[StateDict], dict[str, Any]] = _shows_nothing
    suit: Callable[[nn.Module, StateDict], nn.Module] = _as_made
    transform: Callable[[], Transform | None] = _none_published


def does_not_take(spec: str, kwargs: Mapping[str, Any], error: BaseException) -> CheckpointError:
    """Return the error that says which arguments an architecture does not take, and why."""
    return CheckpointError(f"{named(spec)} does not take {_one_line(kwargs)}: {_one_line(error)}")


def named(spec: str) -> str:
    """Return a spec, which may be any text from a file, as a piece of one line."""
    return f"architecture {spec[:100]!r}"


def refuse(kwargs: Mapping[str, Any], fetching: Callable[[str], bool]) -> None:
    """Refuse arguments with which a constructor would fetch weights or open files.

    Raises:
        TypeError: there is one.
    """
    for name in kwargs:
        if fetching(name):
            raise TypeError(f"'{name}' is left out, for the weights are the checkpoint's own")


def _one_line(what: object) -> str:
    text = str(what).strip().split("\n")[0]
    return text if len(text) <= 200 else f"{text[:200]} ..."
