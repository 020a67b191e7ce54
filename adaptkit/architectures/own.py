"""Architectures of adaptkit's own: the small net of the demo, and IBN-Nets."""

from collections.abc import Callable

from torch import nn

from adaptkit import models
from adaptkit.architectures.architecture import Architecture
from adaptkit.transform import Transform

OWN: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "adaptkit": {"small_cnn": models.SmallCNN},
    "ibn": models.IBN_NETS,
}


def own(kind: str, name: str) -> Architecture | None:
    """Return the architecture of a kind and a name, None if there is none."""
    if name not in OWN[kind]:
        return None
    if kind == "adaptkit":
        return Architecture(
            OWN[kind][name], counts_classes=False, shows=models.SmallCNN.arguments_of
        )
    return Architecture(OWN[kind][name], transform=_of_torchvisions_first_weights)


def _of_torchvisions_first_weights() -> Transform:
    return Transform(image_size=(224, 224), resize="crop", resize_size=256)
