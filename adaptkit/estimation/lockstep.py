"""Exact statistics in one forward: every micro-batch waits at each norm layer for the others."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.errors import EstimationError
from adaptkit.estimation.coroutine import Coroutine, current
from adaptkit.moments import Moments, PerSample

Settle = Callable[[str, Moments], tuple[Tensor, Tensor]]
Stretch = Callable[[], tuple[str, Moments] | None]
Merge = Callable[[int, Stretch], tuple[str, Moments] | None]

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Arrival(NamedTuple):
    """A micro-batch stands before a norm layer, and these are the moments of what it brings."""

    layer: str
    moments: PerSample


def lockstep(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    micro_batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    weight: Tensor | None = None,
    settle: Settle | None = None,
    visits: int | None = None,
    merge: Merge | None = None,
    owned: Collection[str] = (),
    watched: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Moments]:
    """Return each layer's moments over all micro-batches, upstream layers using their own new ones.

    The forward passes of all micro-batches start, and each is suspended before every layer of
    `layers`. Once all have arrived there, their moments are merged, the layer gets the merged mean
    and unbiased variance, and all go on, now normalised as inference will do it. A layer that is
    visited several times in one forward pools its visits, each later one seeing all so far.

    The model has to be in eval mode, and what stands in the layers is replaced: call it inside
    `norms.evaluating`.

    Args:
        model: passed to `forward`.
        layers: name -> module, each called by every micro-batch or by none.
        micro_batches: what `forward` takes, on the model's device.
        forward: runs one micro-batch through the model; what it returns is dropped.
        weight: shape (N,), one for each sample of all micro-batches in order.
        settle: gives the mean and variance that a layer normalises by, of its name and moments; by
            default they are the moments' own.
        visits: stop after so many visits to norm layers, if it is known that no more come.
        merge: takes the number of a visit and a function that lets the micro-batches of this
            process run to it, and returns the layer and its moments over those of all processes,
            or None at the end. By default there is this process only.
        owned: layers whose input nothing else reads. Those of torch's own BatchNorm normalise in
            place: fresh memory costs more than the arithmetic.
        watched: passes on the micro-batches of each stretch, one by one.
        progress: called with the number of layers done.

    Raises:
        EstimationError: micro-batches pass the layers in different orders, a layer sees fewer than
            two values a channel, or its moments are not finite.
        BaseException: the first error of any micro-batch, as it was raised; no thread is left.
    """
    found: dict[str, Moments] = {}
    members: set[Coroutine[_Arrival]] = set()
    done = 0

    def arrive(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        here = current()
        if here is None or here not in members:
            raise EstimationError(
                f"norm layer '{name}' was called on a thread that the model started itself, "
                f"which exact estimation cannot follow"
            )
        here.suspend(_Arrival(name, _moments(name, x)))

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(partial(arrive, name), with_kwargs=True)
            undo.callback(hook.remove)
        for name in owned:
            undo.enter_context(_in_place(layers[name]))
        undo.enter_context(torch.no_grad())
        running = [Coroutine[_Arrival](partial(forward, model, batch)) for batch in micro_batches]
        members.update(running)
        for coroutine in running:
            undo.callback(coroutine.close)

        failed: list[Exception] = []  # which the other processes hear of at the next visit

        def stretch() -> tuple[str, Moments] | None:
            if failed:
                raise failed[0]
            arrivals = _advance(watched(iter(running)))
            if not arrivals:
                return None
            name = arrivals[0].layer
            return name, _pooled(name, layers[name], [a.moments for a in arrivals], weight)

        def ended() -> None:
            if failed:
                raise failed[0]

        while done != visits and (step := merge(done, stretch) if merge else stretch()):
            name, here = step
            try:
                found[name] = found[name] + here if name in found else here
                _check(name, found[name])
                norms.replace(layers[name], *(settle or as_found)(name, found[name]))
                if progress:
                    progress(len(found))
            except Exception as error:
                if merge is None:
                    raise
                failed.append(error)
            done += 1
        if merge and done == visits:
            merge(done, ended)
    return found


def _advance(coroutines: Iterable[Coroutine[_Arrival]]) -> list[_Arrival]:
    """Let each run to its next norm layer; [] once all have ended."""
    arrivals = [coroutine.resume() for coroutine in coroutines]
    names = [a.layer if a else None for a in arrivals]
    for index, name in enumerate(names):
        if name != names[0]:
            raise EstimationError(
                f"micro-batches pass different norm layers: the first one is at {_at(names[0])} "
                f"where number {index + 1} is at {_at(name)}; exact estimation needs the same "
                f"layers in the same order for every batch"
            )
    return [a for a in arrivals if a]


def as_found(_: str, moments: Moments) -> tuple[Tensor, Tensor]:
    """Settle a layer on the mean and unbiased variance of its moments."""
    return moments.mean, moments.variance()


def _at(name: str | None) -> str:
    return "the end" if name is None else f"layer '{name}'"


def _moments(name: str, x: Any) -> PerSample:
    if not isinstance(x, Tensor) or x.ndim < 2:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise EstimationError(f"norm layer '{name}' expected (N, C, ...) input, got {shape}")
    return PerSample.of(x)


def _pooled(
    name: str, layer: nn.Module, parts: Sequence[PerSample], weight: Tensor | None
) -> Moments:
    rows = sum(len(part.mean) for part in parts)
    if weight is not None and rows != len(weight):
        raise EstimationError(
            f"norm layer '{name}' sees {rows} rows for {len(weight)} samples, so the samples' "
            f"weights cannot be told apart there"
        )
    try:
        return Moments.pooled(parts, weight=weight, within=norms.averages_instances(layer))
    except ValueError as error:
        raise EstimationError(f"norm layer '{name}': {error}") from None


def _check(name: str, moments: Moments) -> None:
    if moments.count < 2:
        raise EstimationError(
            f"norm layer '{name}' sees {moments.count} value a channel in all, and a variance "
            f"needs two: give more images, or more that weigh something"
        )
    if not moments.is_finite():
        raise EstimationError(
            f"norm layer '{name}' sees values that are not finite: the model overflows on this "
            f"data, or the data holds NaN"
        )


@contextmanager
def _in_place(layer: nn.Module) -> Iterator[None]:
    """Let a layer of torch's own BatchNorm write its output over its input, on a CPU."""
    if type(layer) not in _PLAIN or "forward" in layer.__dict__:
        yield
        return

    def forward(x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not x.is_floating_point():
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        nothing = layer.running_mean.new_empty(0)  # type: ignore[operator]
        torch.ops.aten.native_batch_norm.out(
            x,
            layer.weight,
            layer.bias,
            layer.running_mean,
            layer.running_var,
            False,
            0.0,
            layer.eps,
            out=x,
            save_mean=nothing,
            save_invstd=nothing,
        )
        return x

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
