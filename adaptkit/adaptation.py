"""AdaBN in one call: the model, with the target's normalisation statistics."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.device import resolve_device
from adaptkit.distributed import world
from adaptkit.distributed.sharded import copied
from adaptkit.errors import EstimationError
from adaptkit.estimation import Statistics, estimate
from adaptkit.estimation.agreement import blended, take_first
from adaptkit.guard import Calibration, Decision, guarded_statistics
from adaptkit.moments import Moments


def adapt(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    prior: float = 0,
    correction: Callable[[str, Moments], tuple[Tensor, Tensor]] | None = None,
    guard: Literal["off", "auto"] = "off",
    calibration: Calibration | None = None,
    inplace: bool = False,
    device: torch.device | str | None = None,
    **options: Any,
) -> nn.Module:
    """Return the model with its normalisation statistics re-estimated on unlabelled target data.

    The weights stay; every layer that stores data-set statistics gets the target's mean and
    unbiased variance in their place, as `estimate` finds them. Labels are never read. This assumes
    that the target's class mix resembles the source's: where it does not, accuracy can fall, and
    `guard` is for that.

    In a job of several processes, as `torchrun` starts one, call it in every process. Each reads a
    part of the data, and all get the same statistics, those of one process on all of it: where the
    loaders of all hold the same data set (a DistributedSampler or not), it is dealt out among them;
    otherwise, and of plain iterables always, each one's loader is its own part. Mode "stream" is an
    approximation of its own: each process pools chunks of its part. What the norm layers store in
    rank 0 is the source's. `adaptkit.distributed.alone` keeps a call within one process.

    Args:
        model: any model with BatchNorm layers or others that store statistics.
        loader: any iterable of tensors, (tensor, label) pairs or dicts with an image.
        prior: how many samples the source's own statistics count for, N of (N·source + n·target) /
            (N + n), layer by layer as the sample passes (at the end with mode "stream"). About 8
            steady a target of fewer than 32 images; a larger one needs none
            (`python -m benchmarks target-size`).
        correction: of the statistics, layer by layer; `adaptkit.guard.ClassMix` corrects them for
            a mix of classes that is not the source's.
        guard: "auto" returns the model that `adaptkit.guard.decide` chose, which may be the
            source's own; the loader is then read twice. Not with `correction`.
        calibration: of the model (`calibrate`), for the guard: it chooses better with one.
        inplace: change `model` itself; by default a deep copy is changed, and `model` never. One
            that FSDP deals out over processes cannot be copied. Each holds it whole meanwhile.
        device: where to compute and where the returned model is; by default where the model is.
        **options: of `estimate`: mode, samples, tolerance, memory, layers, weight, precision,
            forward, on_bad, seed, resume, progress.

    Returns:
        The adapted model, its training flags as they were.

    Raises:
        EstimationError: see `estimate`; or the guard is given a correction, or an iterator that can
            be read once. The model's statistics are then unchanged.
        DataError: a batch is of a form that only `forward` could handle.
        ModelError: the model is dealt out over processes and cannot be copied, or otherwise than by
            FSDP, as tensor parallelism does.
        DistributedError: the processes of a job differ in code, model or arguments, or one failed.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779; `prior`: Schneider et al. 2020, arXiv
    2006.16971.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> adapted = adapt(net, [torch.tensor([[1.0], [3.0]])])
    >>> adapted[0].running_mean.item(), net[0].running_mean.item()
    (2.0, 0.0)
    """
    adapted = model if inplace else copied(model)
    if device is not None:
        adapted = adapted.to(resolve_device(device))
    statistics, _ = target_statistics(
        adapted,
        loader,
        prior=prior,
        correction=correction,
        guard=guard,
        calibration=calibration,
        **options,
    )
    take_first(world(), adapted, norms.overwrite)
    return adapted if statistics is None else statistics.apply(adapted)


def target_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    prior: float = 0,
    correction: Callable[[str, Moments], tuple[Tensor, Tensor]] | None = None,
    guard: Literal["off", "auto"] = "off",
    calibration: Calibration | None = None,
    **options: Any,
) -> tuple[Statistics | None, Decision | None]:
    """Return what `adapt` writes into a model, and why: for those who write it themselves.

    Args and errors are those of `adapt`; the model is left as it is.

    Returns:
        The statistics, corrected and blended as asked for, None where the guard keeps the source's;
        and what the guard decided, None where it was off.
    """
    if guard == "auto":
        if correction is not None:
            raise EstimationError("the guard corrects by itself: leave that out")
        return _guarded(model, loader, prior, calibration, options)
    if guard != "off":
        raise EstimationError(f"Expected guard to be 'off' or 'auto', got {guard!r}")
    statistics = estimate(model, loader, prior=prior, correction=correction, **options)
    if correction:
        statistics = statistics.corrected(correction)
    return blended(world(), statistics, model, prior) if prior else statistics, None


def _guarded(
    model: nn.Module,
    loader: Iterable[Any],
    prior: float,
    calibration: Calibration | None,
    options: dict[str, Any],
) -> tuple[Statistics | None, Decision]:
    if isinstance(loader, Iterator):
        raise EstimationError(
            "the guard reads the data twice, and an iterator can be read once: give a list or a "
            "DataLoader"
        )
    decision, _, statistics = guarded_statistics(
        model, loader, calibration=calibration, prior=prior, **options
    )
    return statistics, decision
