"""AdaBN in one call: the model, with the target's normalisation statistics."""

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from adaptkit.batches import Forward
from adaptkit.device import resolve_device
from adaptkit.estimation import Progress, estimate


def adapt(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    samples: int | Literal["all"] = 1024,
    memory: int | None = None,
    inplace: bool = False,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    on_bad: Literal["skip", "raise"] = "skip",
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Return the model with its normalisation statistics re-estimated on unlabelled target data.

    The weights stay; every layer that stores data-set statistics gets the target's mean and
    unbiased variance in their place, as `estimate` finds them. Labels are never read. This assumes
    that the target's class mix resembles the source's: where it does not, accuracy can fall.

    Args:
        model: any model with BatchNorm layers or others that store statistics.
        loader: any iterable of tensors, (tensor, label) pairs or dicts with an image.
        samples: how many samples to use at most, or "all"; see `estimate`.
        memory: bytes that waiting activations may take; see `estimate`.
        inplace: change `model` itself; by default a deep copy is changed, and `model` never.
        device: where to compute and where the returned model is; by default where the model is.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        on_bad: "skip" or "raise" for a sample that holds NaN or an infinity.
        seed: decides which samples are drawn.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The adapted model, its training flags as they were.

    Raises:
        EstimationError: see `estimate`; the model is then unchanged.
        DataError: a batch is of a form that only `forward` could handle.

    Source: AdaBN, Li et al. 2016, arXiv 1603.04779.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> adapted = adapt(net, [torch.tensor([[1.0], [3.0]])])
    >>> adapted[0].running_mean.item(), net[0].running_mean.item()
    (2.0, 0.0)
    """
    adapted = model if inplace else copy.deepcopy(model)
    if device is not None:
        adapted = adapted.to(resolve_device(device))
    statistics = estimate(
        adapted,
        loader,
        samples=samples,
        memory=memory,
        forward=forward,
        on_bad=on_bad,
        seed=seed,
        progress=progress,
    )
    return statistics.apply(adapted)
