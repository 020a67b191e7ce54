"""From a spec, arguments and the shapes in a file to a model."""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.architectures import own, timm_models, torchvision_models, user_code
from adaptkit.architectures.architecture import (
    BAD_ARGUMENTS,
    Architecture,
    StateDict,
    does_not_take,
    named,
)
from adaptkit.architectures.shapes import WithoutMemory, class_count
from adaptkit.errors import CheckpointError
from adaptkit.transform import Transform

_KINDS = (*own.OWN, "torchvision", "timm")
_FORMS = (
    "adaptkit:NAME, ibn:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY or "
    "package.module:FACTORY"
)


def build(
    spec: str,
    kwargs: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the model that `spec` names, with fresh weights, in eval mode on the CPU.

    Nothing is downloaded, and no weights are read. User code prints to stderr.

    Args:
        spec: "adaptkit:NAME", "ibn:NAME" (of `models.IBN_NETS`, such as "ibn:resnet50_ibn_a"),
            "torchvision:NAME" (for classification, segmentation and detection), "timm:NAME" (with
            or without a tag, such as "timm:resnet50.a1_in1k"), or a function or class in the
            user's own code that returns a model: "FILE.py:FACTORY" or "package.module:FACTORY",
            where the folder of FILE.py and the current one are searched first; FACTORY may be a
            class's, as in "nets:Net.from_name".
        kwargs: for the model's constructor.
        state_dict: its keys and shapes say what `kwargs` does not: the number of classes, where
            the constructor has `num_classes`; which heads there are; and for adaptkit:small_cnn
            all arguments. A detector whose state dict has no `num_batches_tracked` gets
            FrozenBatchNorm2d where torchvision's has it.

    Raises:
        CheckpointError: there is no such architecture, it does not take `kwargs`, or the user's
            code raised.
        DependencyError: timm is not installed.

    >>> build("adaptkit:small_cnn", {"num_classes": 3}).classifier.out_features
    3
    """
    given = dict(kwargs or {})
    with _construction(spec, given):
        architecture = _find(spec)
        if state_dict is None:
            return architecture.make(**given).cpu().eval()
        found = _arguments(architecture, given, state_dict)
        model = architecture.make(**{**found, **given}).cpu()
        return architecture.suit(model, state_dict).eval()


def arguments_of(spec: str, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the shapes of a state dict say of its architecture's arguments.

    Raises:
        CheckpointError: there is no such architecture, or the user's code raised.
        DependencyError: timm is not installed.

    >>> state_dict = build("torchvision:resnet18", {"num_classes": 3}).state_dict()
    >>> arguments_of("torchvision:resnet18", state_dict)
    {'num_classes': 3}
    """
    with _construction(spec, {}):
        return _arguments(_find(spec), {}, state_dict)


def without_memory(spec: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Return the model that `spec` names with tensors that have shapes but no memory.

    Raises:
        CheckpointError: there is no such architecture, it does not take `kwargs`, or the user's
            code raised.
        DependencyError: timm is not installed.

    >>> without_memory("ibn:resnet50_ibn_a", {"num_classes": 3}).fc.weight.shape
    torch.Size([3, 2048])
    """
    with _construction(spec, kwargs):
        architecture = _find(spec)
        with WithoutMemory():
            return architecture.make(**kwargs)


def default_transform(spec: str) -> Transform | None:
    """Return the evaluation transform published with a model's weights, or None.

    For an IBN-Net it is resize 256, crop 224 and ImageNet's mean and standard deviation. timm's
    is that of its own evaluation, at the size for tests; None where `Transform` cannot do the same
    (borders, or a margin around an image whose aspect ratio is not kept). User code has none, and
    does not run.

    All images of a batch have one size, so two kinds of models see less than is published. For
    segmentation the shorter side is resized as published (520 pixels), and the square in the
    middle is taken: objects keep the scale and the aspect ratio that they had in training. The
    same goes for detectors, with the size to which they resize images themselves, which leaves
    the square as it is; they also normalise by themselves, so mean and std are 0 and 1 here. SSD
    stretches its images, and so does its transform.

    Raises:
        CheckpointError: there is no such architecture.
        DependencyError: timm is not installed.

    >>> default_transform("torchvision:resnet18").image_size
    (224, 224)
    """
    if runs_code(spec):
        return None
    with _construction(spec, {}):
        return _find(spec).transform()


def runs_code(spec: str) -> bool:
    """Whether a spec names code of a user's own, a file or a module, which building would run.

    >>> runs_code("nets.py:make"), runs_code("timm:resnet50"), runs_code("resnet50")
    (True, False, False)
    """
    return spec.partition(":")[0] not in _KINDS and user_code.is_user_code(spec)


def _find(spec: str) -> Architecture:
    kind, _, name = spec.partition(":")
    if kind in own.OWN:
        found = own.own(kind, name)
    elif kind == "torchvision":
        found = torchvision_models.architecture(name)
    elif kind == "timm":
        found = timm_models.architecture(name)
    else:
        found = user_code.architecture(spec) if runs_code(spec) else None
    if found is None:
        likely = _likely(spec)
        hint = f"; did you mean {likely}?" if likely else ""
        raise CheckpointError(f"unknown {named(spec)}: expected {_FORMS}{hint}")
    return found


def _likely(spec: str) -> str:
    kind, _, name = spec.partition(":")
    file = kind if kind.endswith(".py") else f"{kind}.py"
    with suppress(OSError, ValueError):  # of what is no path
        if kind not in _KINDS and Path(file).is_file():
            return f"{file}:{name if name.isidentifier() else 'FACTORY'}"
    known = {"torchvision": torchvision_models.names(), **own.OWN}
    if kind == "timm":
        known = {"timm": timm_models.names(name)}
    kinds = [kind] if kind in known else known
    names = {n: f"{k}:{n}" for k in kinds for n in known[k]}
    close = difflib.get_close_matches((name or kind)[:100], names, n=3)
    return " or ".join(names[n] for n in close)


@contextmanager
def _construction(spec: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Leave the random state alone, and say which arguments an architecture does not take."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisation; the weights are overwritten
            yield
    except BAD_ARGUMENTS as error:
        raise does_not_take(spec, kwargs, error) from None


def _arguments(
    architecture: Architecture, given: Mapping[str, Any], state_dict: StateDict
) -> dict[str, Any]:
    """Find the constructor's arguments in a state dict, so far as they show."""
    found = architecture.shows(state_dict)
    if architecture.counts_classes and "num_classes" not in given:
        found |= class_count(architecture.make, {**found, **given}, state_dict)
    return found
