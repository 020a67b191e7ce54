"""The certificate: an adapted model sees, at every norm layer, the moments that it stores."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Forward, call, inputs_of, to_device
from adaptkit.distributed import world
from adaptkit.errors import EstimationError
from adaptkit.estimation.precision import Precision, autocast
from adaptkit.estimation.run import checked, pool, prepared
from adaptkit.estimation.sampling import draw, finite, regroup
from adaptkit.loaders import weight_of
from adaptkit.moments import Moments, PerSample

_ROWS = 32  # samples in one forward


@dataclass(frozen=True)
class Certificate:
    """How far the moments that a model sees lie from those that it stores, per layer.

    Args:
        mean: layer name -> the largest error of a channel's mean, in its standard deviations.
        log_variance: layer name -> the largest error of a channel's log-variance.
    """

    mean: dict[str, float]
    log_variance: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest of all errors; about 1e-6 for exact statistics in float32."""
        return max(*self.mean.values(), *self.log_variance.values(), 0.0)


def certify(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    samples: int | Literal["all"] | None = None,
    statistics: Mapping[str, Moments] | None = None,
    layers: norms.Select = None,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    forward: Forward | None = None,
    seed: int = 0,
) -> Certificate:
    """Pass a sample through an adapted model in eval mode and compare what each norm layer sees.

    With the arguments that the model was adapted with, the same sample is drawn, and the errors are
    those of the estimate itself; with another sample they include sampling error.

    Args:
        model: an adapted model; left as it was.
        loader: as for `estimate`.
        samples: as for `estimate`.
        statistics: what each layer should see instead of what the model stores: of
            ``estimate(..., prior=N)``, for a model that stores them blended.
        layers: as for `estimate`.
        device: as for `estimate`.
        precision: of the forward pass.
        forward: as for `estimate`.
        seed: as for `estimate`.

    Raises:
        EstimationError: as `estimate`, or the loader has weights of its own.

    >>> from adaptkit import adapt
    >>> data = torch.randn(50, 3, 4, 4).split(7)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    >>> certify(net, data).worst > 0.1, certify(adapt(net, data), data).worst < 1e-5
    (True, True)
    """
    together = world()
    with together.united():
        if weight_of(loader):
            raise EstimationError("a certificate counts all samples alike, and the loader does not")
        model, chosen, where = prepared(model, layers, device)
        wanted = checked(samples=samples)
    drawn = finite(draw(loader, wanted, seed, together).batches, "skip", lambda _: None)
    own: dict[str, Moments] = {}

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        here = Moments.pooled([PerSample.of(x)], within=norms.averages_instances(layer))
        own[name] = own[name] + here if name in own else here

    with together.united(), contextlib.ExitStack() as undo:
        for name, layer in chosen.items():
            hook = layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
            undo.callback(hook.remove)
        undo.enter_context(norms.evaluating(model))
        undo.enter_context(heap.kept(where))
        undo.enter_context(torch.no_grad())
        undo.enter_context(autocast(precision, where))
        pieces = (to_device(b if forward else inputs_of(b), where) for b in drawn)
        for piece in together.watched(pieces if forward else regroup(pieces, _ROWS)):
            (forward or call)(model, piece)
    seen: dict[str, Moments] = {}
    for part in together.gather({name: moments.to("cpu") for name, moments in own.items()}):
        pool(seen, part)
    if not seen:
        raise EstimationError("there is no data to certify with")
    errors = {name: _errors(*_due(chosen[name], name, statistics), x) for name, x in seen.items()}
    return Certificate({k: v[0] for k, v in errors.items()}, {k: v[1] for k, v in errors.items()})


def _due(
    layer: nn.Module, name: str, statistics: Mapping[str, Moments] | None
) -> tuple[Tensor, Tensor]:
    """Return the mean and variance that a layer should see."""
    if statistics is not None and name in statistics:
        return statistics[name].mean, statistics[name].variance()
    stored = norms.read(layer)
    return stored.mean, stored.variance


def _errors(mean: Tensor, variance: Tensor, seen: Moments) -> tuple[float, float]:
    """Of the channels that vary; one that does not has to have its mean and no variance."""
    mean, variance = mean.to(seen.mean), variance.to(seen.mean)
    true = seen.variance()
    varies = true > 0
    in_std = ((mean - seen.mean).abs() / true.sqrt())[varies]
    in_log = (variance.log() - true.log()).abs()[varies]
    if not bool(variance[~varies].eq(0).all()):
        return math.inf, math.inf
    return _largest(in_std), _largest(in_log)


def _largest(x: torch.Tensor) -> float:
    return float(x.max()) if len(x) else 0.0
