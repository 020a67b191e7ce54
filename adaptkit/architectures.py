"""From the name of an architecture to a model, with nothing downloaded."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adaptkit import models
from adaptkit.errors import CheckpointError
from adaptkit.transform import Transform

OWN: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "adaptkit": {"small_cnn": models.SmallCNN},
    "ibn": models.IBN_NETS,
}
_DEFAULT_CLASSES = 1000  # of every torchvision classification model
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
# What constructors raise on arguments that they do not check.
_BAD_ARGUMENTS = (
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
)


def build(
    spec: str,
    kwargs: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the model that `spec` names, with fresh weights, in eval mode on the CPU.

    Args:
        spec: "adaptkit:NAME", "ibn:NAME" (of `models.IBN_NETS`, such as "ibn:resnet50_ibn_a") or
            "torchvision:NAME" (classification models).
        kwargs: for the model's constructor.
        state_dict: its shapes say what `kwargs` does not: the number of classes, and for
            adaptkit:small_cnn all arguments.

    Raises:
        CheckpointError: there is no such architecture, or it does not take `kwargs`.

    >>> build("adaptkit:small_cnn", {"num_classes": 3}).classifier.out_features
    3
    """
    make = _constructor(spec)
    given = dict(kwargs or {})
    with _construction(spec, given):
        found = {} if state_dict is None else _arguments_of(spec, make, given, state_dict)
        return make(**{**found, **given}).eval()


def arguments_of(spec: str, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the shapes of a state dict say of its architecture's arguments.

    Raises:
        CheckpointError: there is no such architecture.

    >>> state_dict = build("torchvision:resnet18", {"num_classes": 3}).state_dict()
    >>> arguments_of("torchvision:resnet18", state_dict)
    {'num_classes': 3}
    """
    make = _constructor(spec)
    with _construction(spec, {}):
        return _arguments_of(spec, make, {}, state_dict)


def without_memory(spec: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the model that `spec` names with tensors that have shapes but no memory.

    Raises:
        CheckpointError: there is no such architecture, or it does not take `kwargs`.

    >>> without_memory("ibn:resnet50_ibn_a", {"num_classes": 3}).fc.weight.shape
    torch.Size([3, 2048])
    """
    make = _constructor(spec)
    with _construction(spec, kwargs), _WithoutMemory():
        return make(**kwargs)


def default_transform(spec: str) -> Transform | None:
    """Return the evaluation transform published with a model's weights, or None.

    For an IBN-Net it is resize 256, crop 224 and ImageNet's mean and standard deviation.

    >>> default_transform("torchvision:resnet18").image_size
    (224, 224)
    """
    kind, _, name = spec.partition(":")
    if kind == "ibn":
        return Transform(image_size=(224, 224), resize="crop", resize_size=256)
    if kind != "torchvision":
        return None
    published = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    (size,) = published.crop_size
    return Transform(
        image_size=(size, size),
        resize="crop",
        resize_size=published.resize_size[0],
        mean=tuple(published.mean),
        std=tuple(published.std),
    )


def _constructor(spec: str) -> Callable[..., nn.Module]:
    kind, _, name = spec.partition(":")
    theirs = torchvision.models.list_models(module=torchvision.models)
    if kind == "torchvision" and name in theirs:
        return _torchvision(name)
    if name in OWN.get(kind, {}):
        return OWN[kind][name]
    known: dict[str, Iterable[str]] = {"torchvision": theirs, **OWN}
    kinds = [kind] if kind in known else known
    names = {n: f"{k}:{n}" for k in kinds for n in known[k]}
    close = difflib.get_close_matches(name or kind, names, n=3)
    likely = " or ".join(names[n] for n in close) or next(iter(names.values()))
    raise CheckpointError(
        f"unknown architecture {spec!r}: expected adaptkit:NAME, ibn:NAME or torchvision:NAME; "
        f"did you mean {likely}?"
    )


@contextmanager
def _construction(spec: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Leave the random state alone, and say which arguments an architecture does not take."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisation; the weights are overwritten
            yield
    except _BAD_ARGUMENTS as error:
        raise CheckpointError(
            f"architecture '{spec}' does not take {_one_line(kwargs)}: {_one_line(error)}"
        ) from None


def _torchvision(name: str) -> Callable[..., nn.Module]:
    def make(**kwargs: Any) -> nn.Module:
        if name in _WITH_AUXILIARY_HEADS:  # a slow initialisation, soon overwritten
            kwargs.setdefault("init_weights", False)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **kwargs)
        return model

    return make


def _arguments_of(
    spec: str,
    make: Callable[..., nn.Module],
    given: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Find the constructor's arguments in the shapes of a state dict, so far as they show."""
    kind, _, name = spec.partition(":")
    if kind == "adaptkit":
        return models.SmallCNN.arguments_of(state_dict)
    found: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:  # dropped from models that were made for inference
        found["aux_logits"] = any(key.startswith(("aux", "AuxLogits")) for key in state_dict)
    if "num_classes" not in given:
        found |= _class_count(make, {**found, **given}, state_dict)
    return found


class _WithoutMemory(TorchFunctionMode):
    """Tensors get shapes but no memory, while the sums that some constructors do stay real."""

    MAKERS = (torch.empty, torch.ones, torch.zeros)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = {**(kwargs or {}), "device": "meta"} if func in self.MAKERS else (kwargs or {})
        return func(*args, **options)


def _class_count(
    make: Callable[..., nn.Module], arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> dict[str, int]:
    """Find num_classes: the one other size that stands where a default model has 1,000."""
    with _WithoutMemory():
        default = make(**arguments).state_dict()
    sizes = {
        len(found)
        for key, found in state_dict.items()
        if key in default
        and found.ndim
        and default[key].ndim
        and len(default[key]) == _DEFAULT_CLASSES
        and found.shape[1:] == default[key].shape[1:]
    }
    return {"num_classes": sizes.pop()} if len(sizes) == 1 else {}


def _one_line(what: object) -> str:
    text = str(what).strip().split("\n")[0]
    return text if len(text) <= 200 else f"{text[:200]} ..."
