"""Exact statistics in one forward: every micro-batch waits at each norm layer for the others."""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.errors import EstimationError
from adaptkit.estimation.coroutine import Coroutine
from adaptkit.moments import Moments, PerSample

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
    visits: int | None = None,
    at_once: int = 1,
    owned: Collection[str] = (),
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
        visits: stop after so many visits to norm layers, if it is known that no more come.
        at_once: how many micro-batches may run at a time, each on its share of torch's CPU threads.
        owned: layers whose input nothing else reads. Those of torch's own BatchNorm normalise in
            place: fresh memory costs more than the arithmetic.
        progress: called with the number of layers done.

    Raises:
        EstimationError: micro-batches pass the layers in different orders, a layer sees fewer than
            two values a channel, or its moments are not finite.
        BaseException: the first error of any micro-batch, as it was raised; no thread is left.
    """
    found: dict[str, Moments] = {}
    done = 0
    state = _ThreadState(threads=max(1, torch.get_num_threads() // at_once))
    turns = threading.Semaphore(at_once)
    running: list[Coroutine[_Arrival]] = []

    def run(number: int, batch: Any) -> None:
        with state.restored(), turns:
            running[number].checkpoint()
            forward(model, batch)

    def arrive(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        here = next((c for c in running if c.is_current()), None)
        if here is None:
            raise EstimationError(
                f"norm layer '{name}' was called on a thread that the model started itself, "
                f"which exact estimation cannot follow"
            )
        arrival = _Arrival(name, _moments(name, x))
        turns.release()
        try:
            here.suspend(arrival)
        finally:
            turns.acquire()
        here.checkpoint()

    hooks = [
        layer.register_forward_pre_hook(partial(arrive, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    running += [Coroutine(partial(run, i, batch)) for i, batch in enumerate(micro_batches)]
    with _threads_kept(), contextlib.ExitStack() as undo:
        for hook in hooks:
            undo.callback(hook.remove)
        for name in owned:
            undo.enter_context(_in_place(layers[name]))
        for coroutine in running:
            undo.callback(coroutine.close)
        for coroutine in running:
            undo.callback(coroutine.cancel)  # all, before the first one is waited for
        while done != visits and (arrivals := _advance(running)):
            name = arrivals[0].layer
            here = _pooled(name, layers[name], [a.moments for a in arrivals], weight)
            found[name] = found[name] + here if name in found else here
            _write(name, layers[name], found[name])
            done += 1
            if progress:
                progress(len(found))
    return found


def _advance(coroutines: Sequence[Coroutine[_Arrival]]) -> list[_Arrival]:
    """Let each run to its next norm layer; [] once all have ended."""
    for coroutine in coroutines:
        coroutine.start()
    arrivals = [coroutine.wait() for coroutine in coroutines]
    names = [a.layer if a else None for a in arrivals]
    for index, name in enumerate(names):
        if name != names[0]:
            raise EstimationError(
                f"micro-batches pass different norm layers: the first one is at {_at(names[0])} "
                f"where number {index + 1} is at {_at(name)}; exact estimation needs the same "
                f"layers in the same order for every batch"
            )
    return [a for a in arrivals if a]


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


def _write(name: str, layer: nn.Module, moments: Moments) -> None:
    if moments.count < 2:
        raise EstimationError(
            f"norm layer '{name}' sees {moments.count} value a channel in all, and a variance "
            f"needs two: give more images"
        )
    if not moments.is_finite():
        raise EstimationError(
            f"norm layer '{name}' sees values that are not finite: the model overflows on this "
            f"data, or the data holds NaN"
        )
    norms.replace(layer, moments.mean, moments.variance())


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


class _ThreadState:
    """What a new thread does not inherit: the caller's autocast and device; and its CPU threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda", "mps")
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        ]
        self._cuda = torch.cuda.current_device() if torch.cuda.is_available() else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        if self._cuda is not None:
            torch.cuda.set_device(self._cuda)
        torch.set_grad_enabled(False)  # the thread's own, like the next; both end with it
        torch.set_num_threads(self._threads)
        if not self._autocast:
            yield
            return
        (kind, dtype), *_ = self._autocast
        # The cache would keep all weights once more in every thread.
        with torch.autocast(kind, dtype=dtype, cache_enabled=False):
            yield


def at_once(device: torch.device, micro_batches: int) -> int:
    """Return how many micro-batches to run at a time: on a CPU one a core, elsewhere one.

    Each thread has its own team of OpenMP threads, and once there are more of those than cores,
    every parallel region waits for the system to wake them: on two cores torch's kernels took 15
    times as long on small images as in a lone team. One thread a micro-batch has no such regions.
    """
    return min(torch.get_num_threads(), micro_batches) if device.type == "cpu" else 1


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Set the number of threads that new threads of torch start with back to what it was."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
