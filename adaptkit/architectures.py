"""From the name of an architecture to a model, with nothing downloaded."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from adaptkit import models
from adaptkit.errors import CheckpointError
from adaptkit.transform import Transform

OWN: dict[str, Callable[..., nn.Module]] = {"small_cnn": models.SmallCNN}
_DEFAULT_CLASSES = 1000  # of every torchvision classification model


def build(
    spec: str,
    kwargs: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the model that `spec` names, with fresh weights, in eval mode on the CPU.

    Args:
        spec: "adaptkit:NAME" or "torchvision:NAME" (classification models).
        kwargs: for the model's constructor.
        state_dict: from its shapes a torchvision model's number of classes is found, where `kwargs`
            does not say.

    Raises:
        CheckpointError: there is no such architecture, or it does not take `kwargs`.

    >>> build("adaptkit:small_cnn", {"num_classes": 3}).classifier.out_features
    3
    """
    kind, _, name = spec.partition(":")
    arguments = dict(kwargs or {})
    if kind == "torchvision":
        make = _torchvision(name)
        if state_dict is not None and "num_classes" not in arguments:
            arguments |= _class_count(make, state_dict)
    elif kind == "adaptkit":
        make = OWN.get(name) or _unknown(spec, list(OWN))
    else:
        raise CheckpointError(
            f"unknown architecture '{spec}': expected adaptkit:NAME or torchvision:NAME, "
            f"as in torchvision:resnet18"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            return make(**arguments).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"architecture '{spec}' does not take {arguments}: {_one_line(error)}"
        ) from None


def default_transform(spec: str) -> Transform | None:
    """Return the evaluation transform published with a torchvision model's weights, or None.

    >>> default_transform("torchvision:resnet18").image_size
    (224, 224)
    """
    kind, _, name = spec.partition(":")
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


def _torchvision(name: str) -> Callable[..., nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        return _unknown(f"torchvision:{name}", known)

    def make(**kwargs: Any) -> nn.Module:
        if name in ("googlenet", "inception_v3"):  # a slow initialisation, soon overwritten
            kwargs.setdefault("init_weights", False)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **kwargs)
        return model

    return make


def _unknown(spec: str, known: list[str]) -> Callable[..., nn.Module]:
    kind, _, name = spec.partition(":")
    close = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
    raise CheckpointError(
        f"unknown architecture '{spec}': did you mean {' or '.join(f'{kind}:{n}' for n in close)}?"
    )


def _class_count(
    make: Callable[..., nn.Module], state_dict: Mapping[str, Tensor]
) -> dict[str, int]:
    """Find num_classes: the one other size that stands where a default model has 1,000."""
    with torch.device("meta"):
        default = make().state_dict()
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


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
