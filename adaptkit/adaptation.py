"""AdaBN in one call: the model, with the target's normalisation statistics."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.device import resolve_device
from adaptkit.estimation import estimate
from adaptkit.moments import Moments


def adapt(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    prior: float = 0,
    correction: Callable[[str, Moments], tuple[Tensor, Tensor]] | None = None,
    inplace: bool = False,
    device: torch.device | str | None = None,
    **options: Any,
) -> nn.Module:
    """Return the model with its normalisation statistics re-estimated on unlabelled target data.

    The weights stay; every layer that stores data-set statistics gets the target's mean and
    unbiased variance in their place, as `estimate` finds them. Labels are never read. This assumes
    that the target's class mix resembles the source's: where it does not, accuracy can fall.

    Args:
        model: any model with BatchNorm layers or others that store statistics.
        loader: any iterable of tensors, (tensor, label) pairs or dicts with an image.
        prior: how many samples the source's own statistics count for, N of (N·source + n·target) /
            (N + n), layer by layer as the sample passes (at the end with mode "stream"). About 8
            steady a target of fewer than 32 images; a larger one needs none
            (`python -m benchmarks target-size`).
        correction: of the statistics, layer by layer; `adaptkit.guard.ClassMix` corrects them for
            a mix of classes that is not the source's.
        inplace: change `model` itself; by default a deep copy is changed, and `model` never.
        device: where to compute and where the returned model is; by default where the model is.
        **options: of `estimate`: mode, samples, tolerance, memory, layers, weight, precision,
            forward, on_bad, seed, progress.

    Returns:
        The adapted model, its training flags as they were.

    Raises:
        EstimationError: see `estimate`; the model's statistics are then unchanged.
        DataError: a batch is of a form that only `forward` could handle.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779; `prior`: Schneider et al. 2020, arXiv
    2006.16971.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> adapted = adapt(net, [torch.tensor([[1.0], [3.0]])])
    >>> adapted[0].running_mean.item(), net[0].running_mean.item()
    (2.0, 0.0)
    """
    adapted = model if inplace else copy.deepcopy(model)
    if device is not None:
        adapted = adapted.to(resolve_device(device))
    statistics = estimate(adapted, loader, prior=prior, correction=correction, **options)
    if prior:
        statistics = statistics.blend(adapted, prior=prior)
    if correction:
        statistics = statistics.corrected(correction)
    return statistics.apply(adapted)
