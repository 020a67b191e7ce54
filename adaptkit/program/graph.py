"""From a program's JSON to the steps of its graph; what the JSON says is looked up, never run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from adaptkit.errors import CheckpointError, few, shown
from adaptkit.program import layers, operations
from adaptkit.program.layers import Layer
from adaptkit.program.steps import (
    Form,
    Graph,
    Held,
    Here,
    Step,
    Value,
    freeing,
    names_in,
    read_form,
)
from adaptkit.program.tensors import DTYPES, Entry, Place

_MAJOR = 8  # of the schema
_MOST_STEPS = 50_000
_MOST_PIXELS = 2**16  # images side by side, or along a side of one
_LARGEST = 2**63
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7
_RESHAPING = frozenset({"view", "reshape", "_unsafe_view"})
_LONGEST = 1000  # of a text, such as the equation of an einsum
_ONE_IMAGE = "expected one image input, a tensor of shape (N, C, H, W) of floating point numbers"


def read_graph(program: Mapping[str, Any], entries: Mapping[str, Entry]) -> Graph:
    """Return the graph that a program's JSON describes.

    Args:
        program: the JSON.
        entries: the program's tensors.

    Raises:
        CheckpointError: it is no model in eval mode from one image, or calls what may do harm.
    """
    major = program["schema_version"]["major"]
    if major != _MAJOR:
        raise CheckpointError(
            f"is of version {shown(major)} of torch's schema, expected {_MAJOR}: load and save it "
            f"with the torch that is installed here"
        )
    return _Reader(program["graph_module"], entries).read()


@dataclass
class _Reader:
    module: Mapping[str, Any]
    entries: Mapping[str, Entry]
    values: dict[str, Value | Held] = field(default_factory=dict)
    found: dict[str, Layer] = field(default_factory=dict)  # layers, by all their names
    names: dict[Place, list[str]] = field(default_factory=dict)  # all, by where their tensors lie
    fixed: bool = False  # whether it was exported for one number of images
    half: torch.dtype | None = None  # a dtype for which float32 stands in

    def __post_init__(self) -> None:
        for name, entry in self.entries.items():
            self.names.setdefault(entry.place, []).append(name)

    def read(self) -> Graph:
        graph, signature = self.module["graph"], self.module["signature"]
        if len(graph["nodes"]) > _MOST_STEPS:
            raise CheckpointError(f"has {len(graph['nodes']):,} steps: it is no model's")
        image = self._image(signature["input_specs"])
        meta = graph["tensor_values"][image]
        dtype = DTYPES.get(meta["dtype"])
        shape, example = _sizes(meta["sizes"])
        if len(shape) != 4 or dtype is None or not dtype.is_floating_point:
            raise CheckpointError(f"takes a tensor of shape {shown(shape)}, {_ONE_IMAGE}")
        self.fixed = shape[0] is not None
        self.half = dtype if dtype != torch.float32 else None
        ranks = {name: len(said["sizes"]) for name, said in graph["tensor_values"].items()}
        steps = [
            self._step(node, ranks)
            for node in graph["nodes"]
            if node["target"] not in operations.CHECKS
        ]
        outputs = tuple(self._outputs(signature["output_specs"], graph["outputs"]))
        forms = {entry["fqn"]: self._forms(entry) for entry in self.module["module_call_graph"]}
        freed = freeing(steps, outputs)
        return Graph(image, shape, example, dtype, freed, outputs, forms[""], self.found)

    def _image(self, specs: list[Any]) -> str:
        """Name all inputs, and return the name of the one that is no tensor of the program's."""
        images = []
        for kind, said in map(_only, specs):
            if kind == "user_input":
                what, argument = _only(said["arg"])
                images.append(argument["name"] if what == "as_tensor" else "")
                self.values[images[-1]] = Value(images[-1])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                name = said[f"{kind}_name"]
                if name not in self.entries:
                    raise CheckpointError(f"is broken: it lacks its tensor '{shown(name)}'")
                self.values[said["arg"]["name"]] = Held(name)
            elif kind != "constant_input":  # which stands in the steps by itself
                raise CheckpointError(f"takes an object ({shown(kind)}), {_ONE_IMAGE}")
        if len(images) != 1 or not images[0]:
            raise CheckpointError(f"takes {len(images)} inputs ({few(images)}), {_ONE_IMAGE}")
        return str(images[0])

    def _step(self, node: Mapping[str, Any], ranks: Mapping[str, int]) -> Step:
        target = node["target"]
        given = {said["name"]: self._argument(said["arg"]) for said in node["inputs"]}
        names = tuple(_output(said) for said in node["outputs"])
        packet = operations.packet_of(target)
        if packet in layers.NORMS and packet != "instance_norm" and not given.get("running_mean"):
            target, given, names = layers.OF_BATCH, layers.by_batch(given), names[:1]
        if packet in _RESHAPING and self.fixed:
            given = {key: _by_rows(value) for key, value in given.items()}
        layer = self._layer(packet, given, node, ranks)
        if layer:
            step = Step(layer, (given["input"],), {}, names[0])
        elif function := operations.of_numbers(target):
            step = Step(function, tuple(given.values()), {}, names[0])
        else:
            step = self._operation(target, packet, given, names)
        for name in names_in(step.outputs):
            self.values[name] = Value(name)
        return step

    def _operation(
        self, target: str, packet: str, given: dict[str, Any], names: tuple[Any, ...]
    ) -> Step:
        overload = operations.operation(target)
        if "dropout" in packet and given.get("train") is not False:
            raise CheckpointError(layers.TRAINING)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in overload._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and (argument.kwarg_only or not packet.endswith("_")):
                raise CheckpointError(f"is broken: '{shown(target)}' is never saved")
            if written and isinstance(given.get(argument.name), Held):
                raise CheckpointError(f"changes its own tensors and so {layers.TRAINING}")
            if argument.name == "device" and argument.kwarg_only:
                given = {**given, "device": Here()}  # what is made anew goes where the image is
            if argument.name in given:
                kwargs[argument.name] = given[argument.name]
                if not argument.kwarg_only and len(args) == len(kwargs) - 1:
                    args.append(kwargs[argument.name])
        if kwargs.keys() != given.keys():
            raise CheckpointError(f"is broken: '{shown(target)}' has no {few(sorted(given))}")
        returned = len(overload._schema.returns)
        outputs = names if returned > 1 else names[0] if names else None
        return Step(overload, tuple(args), dict([*kwargs.items()][len(args) :]), outputs)

    def _layer(
        self, packet: str, given: dict[str, Any], node: Mapping[str, Any], ranks: Mapping[str, int]
    ) -> str | None:
        """Return the name of the layer that an operation stands for, None if it is none."""
        if packet in layers.NORMS and given.get("running_mean") is not None:
            names = self._places(given, "running_mean", "running_var", "weight", "bias")
            if not names:
                raise CheckpointError(
                    "normalises by statistics that are no layer's running_mean and running_var, or "
                    "are computed from them: adapt the model from its source (--arch)"
                )
            held = [v.name for v in given.values() if isinstance(v, Held)]
            shapes = {self.entries[name].place.shape for name in held}
            if len(shapes) != 1 or len(first := shapes.pop()) != 1:
                raise CheckpointError(f"is broken: '{shown(names[0])}' has statistics of two sizes")
            rank = ranks[_only(node["inputs"][0]["arg"])[1]["name"]]
            layer = layers.norm(names[0], packet, given, first[0], rank)
            if self.found.setdefault(names[0], layer) != layer:
                raise CheckpointError(
                    f"uses norm layer '{shown(names[0])}' in two ways: adapt the model from its "
                    f"source (--arch)"
                )
        elif packet == "linear":
            names = self._places(given, "weight", "bias")
            if not names:
                return None
            shape = self.entries[given["weight"].name].place.shape
            layer = layers.linear(names[0], given, shape)
            if self.found.setdefault(names[0], layer) != layer:
                return None
        else:
            return None
        self.found.update(dict.fromkeys(names, layer))
        return names[0]

    def _places(self, given: Mapping[str, Any], *keys: str) -> list[str]:
        """Return the names under which the model has a layer that holds just these arguments."""
        first = given[keys[0]]
        if not isinstance(first, Held):
            return []
        ends = f".{keys[0]}"
        names = [name.removesuffix(ends) for name in self._alike(first) if name.endswith(ends)]
        return [name for name in names if all(self._holds(name, k, given.get(k)) for k in keys)]

    def _holds(self, layer: str, key: str, argument: Any) -> bool:
        name = f"{layer}.{key}"
        if isinstance(argument, Held):
            return name in self._alike(argument)
        return argument is None and name not in self.entries

    def _alike(self, held: Held) -> list[str]:
        """Return all names of a tensor, of which the program's steps know but one."""
        place = self.entries[held.name].place
        return self.names[place]

    def _argument(self, said: Mapping[str, Any]) -> Any:
        kind, value = _only(said)
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            return self._argument(value) if kind != "as_tensor" else self._named(value["name"])
        if kind in ("as_tensors", "as_optional_tensors"):
            return [self._argument({"as_tensor": v} if "name" in v else v) for v in value]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            of, inner = _only(value)
            return self._named(inner) if of == "as_name" else _constant(of, inner)
        if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._argument({kind[:-1]: v}) for v in value]
        if kind in ("as_ints", "as_floats", "as_bools", "as_strings"):
            return [_constant(kind[:-1], v) for v in value]
        if kind == "as_scalar_type":
            dtype = DTYPES[value]
            return torch.float32 if dtype == self.half else dtype
        if kind == "as_device":
            return Here()
        return _constant(kind, value)

    def _named(self, name: str) -> Value | Held:
        if name not in self.values:
            raise CheckpointError(f"is broken: nothing gives its value '{shown(name)}'")
        return self.values[name]

    def _forms(self, called: Mapping[str, Any]) -> Form:
        """Return the form of a module's outputs; that of its inputs is held to the same."""
        signature = called["signature"]
        if signature is None:
            return Form()
        read_form(json.loads(signature["in_spec"])[1])
        return read_form(json.loads(signature["out_spec"])[1])

    def _outputs(self, specs: list[Any], outputs: list[Any]) -> Iterator[Any]:
        for spec, output in zip(specs, outputs, strict=True):
            kind, _ = _only(spec)
            if kind in ("buffer_mutation", "parameter_mutation"):
                raise CheckpointError(f"changes its own tensors and so {layers.TRAINING}")
            if kind == "user_output":
                yield self._argument(output)
            elif kind != "user_input_mutation":
                raise CheckpointError(f"gives a {shown(kind)}: export the model by itself")


def _only(said: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the one key of a union, and its value."""
    ((kind, value),) = said.items()
    return kind, value


def _constant(kind: str, value: Any) -> Any:
    if kind == "as_int" and type(value) is int and -_LARGEST <= value < _LARGEST:
        return value
    if kind == "as_float" and (type(value) is float or value in ("Infinity", "-Infinity", "NaN")):
        return float(value)
    if kind == "as_bool" and type(value) is bool:
        return value
    if kind == "as_string" and type(value) is str and len(value) <= _LONGEST:
        return value
    if kind == "as_memory_format":
        return _FORMATS[value]
    if kind == "as_layout" and value == _STRIDED:
        return torch.strided
    if kind == "as_graph":
        raise CheckpointError(
            "holds a graph within its graph, as torch.no_grad() and autocast give in a model's "
            "forward: export it without them"
        )
    raise CheckpointError(f"is broken: its argument {shown(kind)} is {shown(value)}")


def _by_rows(argument: Any) -> Any:
    """Let the first of some fixed sizes be what the others leave: the same for as many images."""
    fixed = isinstance(argument, list) and all(type(n) is int and n > 0 for n in argument)
    return [-1, *argument[1:]] if fixed and argument else argument


def _output(said: Mapping[str, Any]) -> Any:
    """Return the name, or several, that a step gives to one of its results."""
    kind, value = _only(said)
    if kind == "as_tensor":
        return str(value["name"])
    if kind == "as_tensors":
        return tuple(str(each["name"]) for each in value)
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return str(value["as_name"])
    if kind == "as_none":
        return None
    raise CheckpointError(f"has a step that gives {shown(kind)}, expected tensors and numbers")


def _sizes(said: list[Any]) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """Return the sizes of the input, None where any will do, and those of the example."""
    shape, example = [], []
    for kind, size in map(_only, said):
        shape.append(size if kind == "as_int" else None)
        example.append(size if kind == "as_int" else size["hint"]["as_int"])
        if type(example[-1]) is not int or not 0 < example[-1] <= _MOST_PIXELS:
            raise CheckpointError(f"takes a tensor of {shown(example)}, {_ONE_IMAGE}")
    return tuple(shape), tuple(example)
