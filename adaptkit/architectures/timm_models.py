"""The models that timm registers, which is installed where they are wanted."""

import math
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from adaptkit.architectures.architecture import Architecture, refuse
from adaptkit.errors import DependencyError
from adaptkit.transform import Transform

_FETCHING = ("checkpoint_path", "cache_dir")  # beside all that begin with "pretrained"


def names(like: str) -> Iterable[str]:
    """Return the names of all models, and those of one with its tags: "resnet50.a1_in1k"."""
    timm = _timm()
    model = like.partition(".")[0]
    tagged = [name for name in timm.list_pretrained() if name.partition(".")[0] == model]
    return [*timm.list_models(), *tagged]


def architecture(name: str) -> Architecture | None:
    """Return the architecture of a name with or without a tag, None if none is registered.

    Raises:
        DependencyError: timm is not installed.
    """
    timm = _timm()
    model, _, tag = name.partition(".")
    if not timm.is_model(model) or (tag and name not in timm.models.get_arch_pretrained_cfgs(name)):
        return None
    return Architecture(make=partial(_make, name), transform=partial(_transform, name))


def _timm() -> ModuleType:
    try:
        import timm.data
        import timm.models
    except ImportError as error:
        raise DependencyError(
            f"timm:NAME needs timm, which is not installed ({error}): pip install timm, or "
            f'pip install "adaptkit[timm]"'
        ) from None
    return timm


def _make(name: str, /, **kwargs: Any) -> nn.Module:
    refuse(kwargs, lambda key: key.startswith("pretrained") or key in _FETCHING)
    model: nn.Module = _timm().create_model(name, pretrained=False, **kwargs)
    return model


def _transform(name: str) -> Transform | None:
    """Return what timm's own evaluation does, in so far as `Transform` can do the same."""
    timm = _timm()
    published = timm.models.get_pretrained_cfg(name)
    if published is None:
        return None
    stated = timm.data.resolve_data_config(pretrained_cfg=published.to_dict(), use_test_size=True)
    channels, height, width = stated["input_size"]
    whole = stated["crop_pct"] == 1
    common: dict[str, Any] = {
        "image_size": (height, width),
        "channels": channels,
        "mean": tuple(stated["mean"]),
        "std": tuple(stated["std"]),
        "interpolation": stated["interpolation"],
    }
    if stated["crop_mode"] == "squash" and whole:
        return Transform(**common)
    if stated["crop_mode"] == "center" and height == width:
        shorter = math.floor(height / stated["crop_pct"])
        return Transform(resize="crop", resize_size=shorter, **common)
    return None
