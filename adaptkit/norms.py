"""Which layers carry data-set statistics, how to read and write them, and how to put them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torchvision.ops import FrozenBatchNorm2d

from adaptkit.errors import EstimationError

# Layers that normalise by stored statistics, one mean and one variance a channel.
_WITH_STATISTICS = (_BatchNorm, FrozenBatchNorm2d)

_WITHOUT_STATISTICS = {
    nn.GroupNorm: "normalises each sample by itself",
    nn.LayerNorm: "normalises each sample by itself",
    nn.RMSNorm: "normalises each sample by itself",
    nn.LocalResponseNorm: "normalises each sample by itself",
    nn.modules.instancenorm._InstanceNorm: "normalises each sample by itself",
    _BatchNorm: "has track_running_stats=False and so uses each batch's own statistics",
}


@dataclass(frozen=True)
class Stored:
    """The statistics that a norm layer stores: `mean` and `variance` of shape (C,), and its eps."""

    mean: Tensor
    variance: Tensor
    eps: float


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DistributedDataParallel or torch.compile.

    >>> inner = nn.BatchNorm1d(3)
    >>> unwrap(nn.DataParallel(inner)) is inner
    True
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> layer for every layer that carries data-set statistics, in model order.

    A layer that stands at several places has one entry, under its first name.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.InstanceNorm2d(2))
    >>> list(norm_layers(net))
    ['1']
    """
    return {
        name: module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, _WITH_STATISTICS) and module.running_mean is not None
    }


def why_nothing_to_adapt(model: nn.Module) -> str:
    """Say which norm layers a model has and why none of them needs AdaBN."""
    found: dict[str, list[str]] = {}
    for module in unwrap(model).modules():
        for kind, reason in _WITHOUT_STATISTICS.items():
            if isinstance(module, kind):
                found.setdefault(f"{type(module).__name__} {reason}", []).append(reason)
                break
    if not found:
        return "it has no normalisation layer at all"
    counts = [f"{len(n)} {text}" for text, n in found.items()]
    return f"its norm layers store none: {'; '.join(counts)}"


def read(layer: nn.Module) -> Stored:
    """Return a copy of what a norm layer stores."""
    mean, variance = _buffer(layer, "running_mean"), _buffer(layer, "running_var")
    eps = getattr(layer, "eps", 0.0)
    return Stored(mean.detach().clone(), variance.detach().clone(), float(eps))


def replace(layer: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Give a norm layer new statistics in new tensors; the old tensors keep their values."""
    for name, value in (("running_mean", mean), ("running_var", variance)):
        old = _buffer(layer, name)
        setattr(layer, name, value.to(device=old.device, dtype=old.dtype))


def overwrite(layer: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Write statistics into the tensors that a norm layer has."""
    with torch.no_grad():
        _buffer(layer, "running_mean").copy_(mean)
        _buffer(layer, "running_var").copy_(variance)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all of a model in eval mode; afterwards, whatever happened, all is as it was.

    Training flags are set one by one, since a model may override `train()`. The statistics tensors
    of norm layers are put back too, so `replace` may be used freely inside.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (layer, name, _buffer(layer, name))
        for layer in norm_layers(model).values()
        for name in ("running_mean", "running_var")
    ]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for layer, name, buffer in buffers:
            setattr(layer, name, buffer)
        for module, training in flags:
            module.training = training


def _buffer(layer: nn.Module, name: str) -> Tensor:
    buffer = getattr(layer, name)
    if is_lazy(buffer):
        raise EstimationError(
            "a lazy norm layer has no channels yet: pass one batch through the model first"
        )
    if not isinstance(buffer, Tensor):
        raise EstimationError(
            f"Expected {type(layer).__name__}.{name} to be a tensor, got {type(buffer).__name__}"
        )
    return buffer
