"""From batch norm to another normalisation and, where that is exact, back."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.ops import FrozenBatchNorm2d

from adaptkit import norms
from adaptkit.errors import ModelError
from adaptkit.layers.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, _BatchRenorm
from adaptkit.layers.conversion import Conversion
from adaptkit.layers.ibn import IBN, GuardedInstanceNorm2d

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_RENORM = {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

_SAME_IN_INFERENCE = "the same in inference"
_STATISTICS_DROPPED = "statistics dropped, outputs differ until it is trained"


@dataclass(frozen=True)
class _Found:
    """What a norm layer holds, whatever its class."""

    layer: nn.Module
    name: str  # of its class
    dimensions: int  # of space: 1, 2 or 3
    channels: int
    eps: float
    momentum: float | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    batches: Tensor | None

    def placed(self) -> dict[str, Any]:
        """Return device and dtype, for a constructor."""
        for tensor in (self.weight, self.mean):
            if tensor is not None:
                return {"device": tensor.device, "dtype": tensor.dtype}
        return {}


def convert_norm(
    model: nn.Module,
    to: str,
    *,
    layers: norms.Select = None,
    groups: int = 32,
    ratio: float = 0.5,
    inplace: bool = False,
) -> Conversion:
    """Replace a model's batch norm layers by another normalisation, keeping all that has a place.

    Affine weights, statistics, eps, momentum, device, dtype, training flag and `requires_grad` are
    carried over so far as the new layer has them.

    - "batchrenorm": Batch Renormalization; the same in inference.
    - "group": per sample and group of channels; `groups` of them, or the greatest common divisor of
      that and the channels.
    - "layer": per sample over (C, H, W), with a weight for each channel: one group.
    - "instance": per sample and channel. (N, C) input has no instances, and torch refuses it.
    - "ibn-a": the first `ratio` of the channels by instance norm, the others by batch norm with
      their statistics. 2d only.
    - "batch": back to torch's BatchNorm, from BatchRenorm, SyncBatchNorm, FrozenBatchNorm2d and
      InstanceNorm with tracked statistics, all the same in inference. What normalises each sample
      by itself has no exact batch norm and is left.

    A subclass that also applies an activation, as timm's BatchNormAct2d, becomes a Sequential of
    the new norm (`norm`), its dropout (`drop`) and its activation (`act`).

    Args:
        model: its layers are found as BatchNorm, SyncBatchNorm, FrozenBatchNorm2d and their
            subclasses, and, for "batch", InstanceNorm.
        to: one of the names above.
        layers: a name or glob, several of them, or a predicate of name and layer; by default all.
        groups: for "group".
        ratio: for "ibn-a", between 0 and 1.
        inplace: change `model` itself; by default a deep copy. A model that is one norm layer is
            never changed but replaced: use the conversion's `model`.

    Returns:
        Conversion: the model, what changed, and what was left and why.

    Raises:
        ModelError: `to` is unknown, `layers` names a layer that cannot be converted, or a layer
            does something of its own that a conversion would lose.
        EstimationError: `layers` names no norm layer.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> print(convert_norm(net, "group", groups=4))
    1: BatchNorm2d(8) -> GroupNorm(4, 8): statistics dropped, outputs differ until it is trained
    """
    if to not in _MAKERS:
        raise ModelError(f"Expected to be one of {', '.join(_MAKERS)}, got {to!r}")
    if groups < 1:
        raise ModelError(f"Expected groups to be 1 or more, got {groups}")
    model = model if inplace else copy.deepcopy(model)
    made: dict[int, nn.Module] = {}  # so that a layer that stands at several places stays one
    changes, left = {}, {}
    for name, layer in _chosen(model, to, layers).items():
        found = _read(name, layer)
        why_not = _obstacle(found, to)
        if why_not and layers is not None and not callable(layers):
            raise ModelError(f"cannot convert '{name}', a {found.name}, to {to}: {why_not}")
        if why_not:
            left[name] = f"{found.name}({found.channels}): {why_not}"
            continue
        new, said = _MAKERS[to](found, groups if to == "group" else ratio)
        new.train(layer.training)
        made[id(layer)] = _with_activation(layer, new)
        shown = f"{type(new).__name__}({_shown(new)})"
        changes[name] = f"{found.name}({found.channels}) -> {shown}: {said}"
    return Conversion(_replaced(model, made), changes, left)


def _chosen(model: nn.Module, to: str, select: norms.Select) -> dict[str, nn.Module]:
    kinds: tuple[type[nn.Module], ...] = (_BatchNorm, FrozenBatchNorm2d)
    if to == "batch":
        kinds = (*kinds, _InstanceNorm)
    inside = {
        f"{name}.{child}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, IBN)
        for child in ("IN", "BN")
    }
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name not in inside
    }
    return norms.selected(layers, select)


def _obstacle(found: _Found, to: str) -> str | None:
    kind = type(found.layer)
    if to == "batch":
        if kind in _BATCH.values():
            return "it is batch norm already"
        if isinstance(found.layer, _InstanceNorm) and found.mean is None:
            return "it normalises each sample by itself, which no batch norm does"
    if to == "batchrenorm" and isinstance(found.layer, _BatchRenorm):
        return "it is batch renormalization already"
    if to == "ibn-a" and (found.dimensions != 2 or found.channels < 2):
        return "IBN takes 2d input of two channels or more"
    return None


def _read(name: str, layer: nn.Module) -> _Found:
    own = type(layer).__name__
    if does_more(layer):
        raise ModelError(
            f"norm layer '{name}' is a {own}, whose forward is its own, and a conversion would "
            f"lose what it adds: leave it out with layers=, or replace it by hand"
        )
    buffers = dict(layer.named_buffers(recurse=False))
    held = {**buffers, **dict(layer.named_parameters(recurse=False))}
    mean, weight = held.get("running_mean"), held.get("weight")
    reference = mean if mean is not None else weight
    channels = len(reference) if reference is not None else getattr(layer, "num_features", 0)
    return _Found(
        layer=layer,
        name=own,
        dimensions=next((n for n in (1, 3) if isinstance(layer, _of(n))), 2),
        channels=int(channels),
        eps=float(getattr(layer, "eps", 0.0)),
        momentum=getattr(layer, "momentum", 0.1),
        weight=weight,
        bias=held.get("bias"),
        mean=mean,
        variance=held.get("running_var"),
        batches=held.get("num_batches_tracked"),
    )


def does_more(layer: nn.Module) -> bool:
    """Whether a norm layer is of a class whose forward is its own, and not in timm's form."""
    forwards = {nn.BatchNorm1d.forward, nn.SyncBatchNorm.forward, FrozenBatchNorm2d.forward}
    forwards |= {_BatchRenorm.forward, nn.InstanceNorm1d.forward, GuardedInstanceNorm2d.forward}
    return type(layer).forward not in forwards and not _activation(layer)


def _of(dimensions: int) -> tuple[type[nn.Module], ...]:
    return _BATCH[dimensions], _RENORM[dimensions], _INSTANCE[dimensions]


def _activation(layer: nn.Module) -> "OrderedDict[str, nn.Module]":
    """Return what a subclass in timm's form does after normalising."""
    after = OrderedDict((name, getattr(layer, name, None)) for name in ("drop", "act"))
    if not all(isinstance(module, nn.Module) for module in after.values()):
        return OrderedDict()
    return OrderedDict((name, module) for name, module in after.items() if module is not None)


def _with_activation(layer: nn.Module, new: nn.Module) -> nn.Module:
    after = _activation(layer)
    if not after:
        return new
    both = nn.Sequential(OrderedDict([("norm", new), *after.items()]))
    both.training = layer.training
    return both


def _replaced(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in made:
                module._modules[name] = made[id(child)]
    return made.get(id(model), model)


@torch.no_grad()
def _fill(new: nn.Module, found: _Found, keep: slice = slice(None)) -> None:
    """Copy what both have: for the affine weights also whether they are trained."""
    own: dict[str, Any] = dict(new.named_parameters()) | dict(new.named_buffers())
    theirs = {
        "weight": found.weight,
        "bias": found.bias,
        "running_mean": found.mean,
        "running_var": found.variance,
    }
    for name, value in theirs.items():
        if name in own and value is not None:
            own[name].copy_(value[keep])
            if name in ("weight", "bias"):
                own[name].requires_grad_(value.requires_grad)
    if "num_batches_tracked" in own and found.batches is not None:
        own["num_batches_tracked"].copy_(found.batches)


def _batch(found: _Found, _: float) -> tuple[nn.Module, str]:
    tracked = found.mean is not None
    new = _BATCH[found.dimensions](
        found.channels,
        found.eps,
        found.momentum,
        affine=found.weight is not None,
        track_running_stats=tracked,
        **found.placed(),
    )
    _fill(new, found)
    return new, _SAME_IN_INFERENCE


def _batchrenorm(found: _Found, _: float) -> tuple[nn.Module, str]:
    new = _RENORM[found.dimensions](
        found.channels, found.eps, found.momentum, found.weight is not None, **found.placed()
    )
    _fill(new, found)
    if found.mean is None:
        return new, "it had no statistics, which begin at 0 and 1"
    return new, _SAME_IN_INFERENCE


def _group(found: _Found, groups: float) -> tuple[nn.Module, str]:
    new = nn.GroupNorm(
        math.gcd(int(groups), found.channels),
        found.channels,
        found.eps,
        affine=found.weight is not None,
        **found.placed(),
    )
    _fill(new, found)
    return new, _STATISTICS_DROPPED


def _layer(found: _Found, _: float) -> tuple[nn.Module, str]:
    return _group(found, 1)


def _instance(found: _Found, _: float) -> tuple[nn.Module, str]:
    new = _INSTANCE[found.dimensions](
        found.channels, found.eps, affine=found.weight is not None, **found.placed()
    )
    _fill(new, found)
    note = "; it needs (N, C, L) input" if found.dimensions == 1 else ""
    return new, _STATISTICS_DROPPED + note


def _ibn_a(found: _Found, ratio: float) -> tuple[nn.Module, str]:
    new = IBN(found.channels, ratio, found.eps, found.momentum or 0.1, **found.placed())
    instance, batch = new.get_submodule("IN"), new.get_submodule("BN")
    half = getattr(instance, "num_features", 0)
    batch.momentum = found.momentum  # type: ignore[assignment]
    _fill(instance, found, slice(0, half))
    _fill(batch, found, slice(half, None))
    return new, f"{half} channels by instance norm, {_STATISTICS_DROPPED}"


def _shown(new: nn.Module) -> str:
    if isinstance(new, nn.GroupNorm):
        return f"{new.num_groups}, {new.num_channels}"
    if isinstance(new, IBN):
        return f"{getattr(new.IN, 'num_features', '')} + {getattr(new.BN, 'num_features', '')}"
    return str(getattr(new, "num_features", ""))


_MAKERS: dict[str, Callable[[_Found, float], tuple[nn.Module, str]]] = {
    "batchrenorm": _batchrenorm,
    "group": _group,
    "layer": _layer,
    "instance": _instance,
    "ibn-a": _ibn_a,
    "batch": _batch,
}
