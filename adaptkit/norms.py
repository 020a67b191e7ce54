"""Which layers carry data-set statistics, how to read and write them, and how to put them back."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torchvision.ops import FrozenBatchNorm2d

from adaptkit.distributed.sharded import whole
from adaptkit.errors import EstimationError

Select = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

# Layers that normalise by stored statistics, one mean and one variance a channel.
_WITH_STATISTICS: set[type[nn.Module]] = {_BatchNorm, _InstanceNorm, FrozenBatchNorm2d}

_BY_ITSELF = "normalises each sample by itself"
_WITHOUT_STATISTICS = {
    nn.GroupNorm: _BY_ITSELF,
    nn.LayerNorm: _BY_ITSELF,
    nn.RMSNorm: _BY_ITSELF,
    nn.LocalResponseNorm: _BY_ITSELF,
    _InstanceNorm: _BY_ITSELF,
    _BatchNorm: "has track_running_stats=False and so uses each batch's own statistics",
}


@dataclass(frozen=True)
class Stored:
    """The statistics that a norm layer stores: `mean` and `variance` of shape (C,), and its eps."""

    mean: Tensor
    variance: Tensor
    eps: float

    def towards(self, mean: Tensor, variance: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return (1 − share)·stored + share·given, linear in the mean and in the variance."""
        if share == 1:  # what is stored may be infinite
            return mean, variance
        own = self.mean.to(mean), self.variance.to(variance)
        return own[0].lerp(mean, share), own[1].lerp(variance, share)


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


def register(kind: type[nn.Module]) -> type[nn.Module]:
    """Count a class of norm layers from elsewhere among those with data-set statistics.

    Its layers take (N, C, ...) input and in eval mode normalise by the tensors `running_mean` and
    `running_var` of shape (C,). Returns the class, so that it can decorate one.

    >>> @register
    ... class ScaledBatchNorm(nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.register_buffer("running_mean", torch.zeros(2))
    ...         self.register_buffer("running_var", torch.ones(2))
    >>> list(norm_layers(nn.Sequential(ScaledBatchNorm())))
    ['0']
    """
    _WITH_STATISTICS.add(kind)
    return kind


def norm_layers(model: nn.Module, select: Select = None) -> dict[str, nn.Module]:
    """Return name -> layer for every layer that carries data-set statistics, in model order.

    A layer that stands at several places has one entry, under its first name.

    Args:
        model: its wrappers (DataParallel and others) do not count in the names.
        select: a name or glob, several of them, or a predicate of name and layer; by default all.

    Raises:
        EstimationError: a name or glob matches no such layer.

    >>> net = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.BatchNorm2d(2))
    >>> list(norm_layers(net)), list(norm_layers(net, "2*"))
    (['0', '2'], ['2'])
    """
    kinds = tuple(_WITH_STATISTICS)
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in _named_modules(model)
        if isinstance(module, kinds) and getattr(module, "running_mean", None) is not None
    }
    return selected(layers, select)


def selected(layers: dict[str, nn.Module], select: Select) -> dict[str, nn.Module]:
    """Return those of some named norm layers that a `layers=` argument chooses.

    Raises:
        EstimationError: a name or glob matches none of them.
    """
    if select is None:
        return layers
    if callable(select):
        return {name: layer for name, layer in layers.items() if select(name, layer)}
    patterns = [select] if isinstance(select, str) else list(select)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            known = ", ".join(list(layers)[:6]) + (", ..." if len(layers) > 6 else "")
            raise EstimationError(f"no norm layer is named {pattern!r}: there are {known}")
    return {
        name: layer
        for name, layer in layers.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module, wrappers of any kind not counting in the names."""
    for name, module in unwrap(model).named_modules():
        yield ".".join(part for part in name.split(".") if part != "_fsdp_wrapped_module"), module


def averages_instances(layer: nn.Module) -> bool:
    """Whether a layer's statistics are means over instances, as InstanceNorm tracks them.

    `running_mean` is then the mean of the instances' means, and `running_var` the mean of their
    unbiased variances, without the spread between instances.
    """
    return isinstance(layer, _InstanceNorm)


def without_statistics(model: nn.Module) -> dict[str, str]:
    """Return name -> reason for every norm layer that needs no adapting.

    >>> without_statistics(nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2)))
    {'1': 'normalises each sample by itself'}
    """
    adaptable = norm_layers(model)
    found = {}
    for name, module in _named_modules(model):
        reasons = [why for kind, why in _WITHOUT_STATISTICS.items() if isinstance(module, kind)]
        if reasons and name not in adaptable:
            found[name] = reasons[0]
    return found


def why_nothing_to_adapt(model: nn.Module) -> str:
    """Say which norm layers a model has and why none of them needs AdaBN."""
    modules = dict(_named_modules(model))
    counts = Counter(
        f"{type(modules[name]).__name__} {why}" for name, why in without_statistics(model).items()
    )
    if not counts:
        return "it has no normalisation layer at all"
    return f"its norm layers store none: {'; '.join(f'{n} {text}' for text, n in counts.items())}"


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
    of norm layers are put back too, so `replace` may be used freely inside. A model that is dealt
    out over processes is held whole in each (`adaptkit.distributed.sharded.whole`).
    """
    flags = [(module, module.training) for module in model.modules()]
    with restoring(model), whole(model):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Put the statistics tensors of a model's norm layers back afterwards, whatever happened."""
    buffers = [
        (layer, name, _buffer(layer, name))
        for layer in norm_layers(model).values()
        for name in ("running_mean", "running_var")
    ]
    try:
        yield
    finally:
        for layer, name, buffer in buffers:
            setattr(layer, name, buffer)


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
