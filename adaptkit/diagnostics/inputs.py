"""Which layers' inputs are measured, and where these have their channels."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adaptkit import norms
from adaptkit.errors import ModelError


def channels_second(name: str, layer: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Return a layer's input as (N, C, …), wherever the layer has its channels.

    Raises:
        ModelError: it is not a floating tensor of two dimensions or more.
    """
    x = inputs[0].detach() if inputs else torch.empty(0)
    if x.ndim < 2 or not x.is_floating_point():
        came = f"{x.dtype} of shape {tuple(x.shape)}" if inputs else "no tensor"
        raise ModelError(
            f"Expected layer {name!r} to get a floating tensor of shape (N, C, ...), got {came}: "
            f"choose others with layers="
        )
    dimension = 1
    if isinstance(layer, nn.Linear):
        dimension = x.ndim - 1
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        shape = tuple(layer.normalized_shape)
        # Not so in a LayerNorm2d, which moves the channels of (N, C, H, W) to the end by itself.
        if tuple(x.shape[-len(shape) :]) == shape:
            dimension = max(x.ndim - len(shape), 1)
    return x.movedim(dimension, 1)


def chosen(model: nn.Module, select: norms.Select) -> dict[str, nn.Module]:
    """Return name -> module, in model order, of the layers whose inputs are to be measured.

    Raises:
        ModelError: a name or glob matches no module, or nothing is chosen.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if select is None:
        normalising = {*norms.norm_layers(model), *norms.without_statistics(model)}
        found = {n: m for n, m in modules.items() if n in normalising}
        found = found or {n: m for n, m in modules.items() if isinstance(m, (nn.Linear, _ConvNd))}
    elif callable(select):
        found = {n: m for n, m in modules.items() if select(n, m)}
    else:
        found = _matching(modules, [select] if isinstance(select, str) else [*select])
    if not found:
        raise ModelError(
            "the model has no norm, convolution or linear layer: name others with layers="
            if select is None
            else "layers= chooses none of the model's modules"
        )
    return found


def _matching(modules: dict[str, nn.Module], patterns: list[str]) -> dict[str, nn.Module]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            known = ", ".join([*modules][-6:])
            raise ModelError(f"no module is named {pattern!r}: the model's last ones are {known}")
    return {n: m for n, m in modules.items() if any(fnmatchcase(n, p) for p in patterns)}
