"""The steps of a graph: what is called with what, and when a value is no longer needed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from adaptkit.errors import CheckpointError, shown
from adaptkit.program.layers import Layer

_CONTAINERS = {
    "builtins.tuple": tuple,
    "builtins.list": list,
    "builtins.dict": dict,
    "collections.OrderedDict": dict,
}
_DEEPEST = 8  # outputs within outputs


@dataclass(frozen=True)
class Value:
    """What an earlier step gave, or the image."""

    name: str


@dataclass(frozen=True)
class Held:
    """A parameter, buffer or constant, under its name in the model."""

    name: str


@dataclass(frozen=True)
class Here:
    """The device that the image is on, whichever the program was exported for."""


@dataclass(frozen=True)
class Form:
    """How outputs are arranged: one by itself, or several in a container.

    Args:
        kind: None, tuple, list or dict.
        keys: of a dict.
        parts: of a container.
    """

    kind: type | None = None
    keys: tuple[Any, ...] = ()
    parts: tuple["Form", ...] = ()

    def filled(self, outputs: Iterator[Any]) -> Any:
        """Return the outputs in this form."""
        if self.kind is None:
            return next(outputs)
        parts = [part.filled(outputs) for part in self.parts]
        return dict(zip(self.keys, parts, strict=True)) if self.kind is dict else self.kind(parts)


@dataclass(frozen=True)
class Step:
    """One operation.

    Args:
        target: what is called: a function, or a layer by its name in the model.
        args: Value, Held and Here stand for something else, and all other things for themselves.
        kwargs: likewise.
        outputs: the name of what it gives, or names for the several things that it gives.
        done: values that no later step needs.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A program's graph.

    Args:
        image: the name of its input.
        shape: of the input, None where it may be of any size.
        example: the shape of the input with which it was exported.
        dtype: of the input, as stored.
        steps: in order.
        outputs: as the arguments of a step.
        form: of the outputs.
        layers: by their names in the model; one that stands at several places stands here at each.
    """

    image: str
    shape: tuple[int | None, ...]
    example: tuple[int, ...]
    dtype: torch.dtype
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    form: Form
    layers: dict[str, Layer]

    def __deepcopy__(self, _: Any) -> "Graph":
        return self  # nothing in it changes


def read_form(spec: Mapping[str, Any], deepest: int = _DEEPEST) -> Form:
    """Return the form that a "treespec" describes; what class it names is not looked for."""
    kind, parts = spec["type"], spec["children_spec"]
    if kind is None and not parts:
        return Form()
    found = _CONTAINERS.get(kind)
    if found is None or not deepest:
        raise CheckpointError(
            f"gives its outputs as {shown(kind)}, expected a tensor, or several in a tuple, list "
            f"or dict: export the model in a module that returns one"
        )
    keys = tuple(json.loads(spec["context"])) if found is dict else ()
    if not all(isinstance(key, (str, int)) for key in keys):
        raise CheckpointError("is broken: expected the keys of its outputs to be names")
    return Form(found, keys, tuple(read_form(part, deepest - 1) for part in parts))


def freeing(steps: list[Step], outputs: tuple[Any, ...]) -> tuple[Step, ...]:
    """Let each step say which values nothing needs afterwards, and name only what is needed."""
    needed = set(names_in(outputs, Value))
    found = []
    for step in reversed(steps):
        used = {*names_in(step.args, Value), *names_in([*step.kwargs.values()], Value)}
        kept = _kept(step.outputs, needed)
        found.append(replace(step, outputs=kept, done=tuple(sorted(used - needed))))
        needed |= used
    return tuple(reversed(found))


def _kept(names: Any, needed: set[str]) -> Any:
    if isinstance(names, tuple):
        return tuple(_kept(name, needed) for name in names)
    return names if names in needed else None


def names_in(tree: Any, kind: type = str) -> Iterator[str]:
    """Yield the names in nested lists and tuples."""
    if isinstance(tree, (list, tuple)):
        for part in tree:
            yield from names_in(part, kind)
    elif isinstance(tree, kind):
        yield tree.name if isinstance(tree, Value) else str(tree)
