"""A module that runs a program's graph, step by step: no code is made of it."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.program.steps import Graph, Held, Here, Value
from adaptkit.program.tensors import Entry


class Interpreter(nn.Module):
    """Runs a graph on one image tensor; layers and tensors stand in it under the names they had.

    Where the program was exported in half or double precision, float32 stands in for that.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def forward(self, image: Tensor) -> Any:
        """Return what the program gives for an image tensor."""
        values: dict[str, Any] = {self._graph.image: image}
        device = image.device
        for step in self._graph.steps:
            args = [self._filled(argument, values, device) for argument in step.args]
            kwargs = {k: self._filled(v, values, device) for k, v in step.kwargs.items()}
            for name in step.done:
                values.pop(name, None)
            if isinstance(step.target, str):
                result = _through(self._at(step.target), *args)
            else:
                result = step.target(*args, **kwargs)
            del args, kwargs
            _bind(values, step.outputs, result)
            del result
        outputs = [self._filled(output, values, device) for output in self._graph.outputs]
        return self._graph.form.filled(iter(outputs))

    def _filled(self, argument: Any, values: Mapping[str, Any], device: torch.device) -> Any:
        if isinstance(argument, Value):
            return values[argument.name]
        if isinstance(argument, Held):
            return self._at(argument.name)
        if isinstance(argument, list):
            return [self._filled(part, values, device) for part in argument]
        return device if isinstance(argument, Here) else argument

    def _at(self, name: str) -> Any:
        return reduce(getattr, name.split("."), self)


def build(graph: Graph, entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the model of a graph in eval mode, holding `tensors`.

    Raises:
        KeyError: a tensor has a name that none can have.
    """
    model = Interpreter(graph)
    made: dict[str, nn.Module] = {}
    shared: dict[tuple[int, bool], Tensor] = {}
    for name, entry in entries.items():
        *folders, last = name.split(".")
        module: nn.Module = model
        for depth, folder in enumerate(folders, 1):
            module = _child(module, folder, ".".join(folders[:depth]), graph, made)
        if last in module._parameters or last in module._buffers:  # of a layer, without values
            delattr(module, last)
        key = id(tensors[name]), entry.is_parameter
        if key not in shared:
            shared[key] = (
                tensors[name].float() if entry.place.dtype == graph.dtype else tensors[name]
            )
            if entry.is_parameter:
                shared[key] = nn.Parameter(shared[key], requires_grad=entry.requires_grad)
        held = shared[key]
        if isinstance(held, nn.Parameter):
            module.register_parameter(last, held)
        else:
            module.register_buffer(last, held, persistent=entry.persistent)
    for path, layer in made.items():
        for name in [*layer._parameters, *layer._buffers]:
            if f"{path}.{name}" not in entries:
                setattr(layer, name, None)
    return model.eval()


def _child(
    parent: nn.Module, name: str, path: str, graph: Graph, made: dict[str, nn.Module]
) -> nn.Module:
    """Return a module's child, made if it is not there: the layer at `path`, or a mere folder."""
    child = parent._modules.get(name)
    if child is None:
        layer = graph.layers.get(path)
        child = nn.Module() if layer is None else made.get(layer.name) or layer.build()
        if layer is not None:
            made[layer.name] = child
        parent.add_module(name, child)
    return child


def _through(layer: nn.Module, x: Tensor) -> Any:
    """Call a layer; a norm layer's channels are checked here, for not every kernel does."""
    channels = getattr(layer, "num_features", None)
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"Expected an input of {channels} channels, got {x.shape[1]}")
    return layer(x)


def _bind(values: dict[str, Any], names: Any, result: Any) -> None:
    if isinstance(names, str):
        values[names] = result
    elif isinstance(names, tuple):
        for name, part in zip(names, result, strict=True):
            _bind(values, name, part)
