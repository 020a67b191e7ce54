"""What people do with a trained net and unlabelled images of a new domain, in one shape.

Peers' own packages where they install; TENT's normalisation and Schneider et al.'s blending are
written here from the papers, and checked in tests/test_benchmark_methods.py.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from adaptkit import Calibration, OnlineAdapter, adapt, calibrate
from adaptkit.guard import ClassMix, decide, decided_statistics
from adaptkit.layers import restyle
from benchmarks.machine import device
from benchmarks.nets import Source
from benchmarks.precise_bn import installed as has_precise_bn
from benchmarks.precise_bn import update_bn_stats

Batches = Sequence[Tensor]
MEMORY = 2**32  # more than any target here takes, so that no other job's memory limits it


@dataclass(frozen=True)
class Outcome:
    """What a method makes of the images.

    Args:
        logits: shape (N, K), of the images to score, in order, on the CPU.
        model: the one adapted net that gave them all; None where each batch had its own.
        choice: what a guard chose.
    """

    logits: Tensor
    model: nn.Module | None = None
    choice: str | None = None


# Takes a source, the batches to adapt to and those to score. What treats each batch by itself, as
# it comes, does so with the batches to score.
Method = Callable[[Source, Batches, Batches], Outcome]


def _logits(model: Callable[[Tensor], Tensor], batches: Batches) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch).float().cpu() for batch in batches])


def none(source: Source, _: Batches, to_score: Batches) -> Outcome:
    """Leave the source net as it is."""
    return Outcome(_logits(source.model, to_score), source.model)


def torch_update_bn(source: Source, to_adapt: Batches, to_score: Batches) -> Outcome:
    """Average the statistics of the batches, all batches counting alike."""
    model = copy.deepcopy(source.model)
    update_bn(to_adapt, model)
    return Outcome(_logits(model.eval(), to_score), model)


def precise_bn(source: Source, to_adapt: Batches, to_score: Batches) -> Outcome:
    """Pool the statistics of the batches, each normalised by its own."""
    model = copy.deepcopy(source.model).train()
    update_bn_stats()(model, to_adapt, len(to_adapt))
    return Outcome(_logits(model.eval(), to_score), model)


def tent_norm(source: Source, _: Batches, to_score: Batches) -> Outcome:
    """Give each batch its own statistics (TENT's "norm", Wang et al. 2021, arXiv 2006.10726)."""
    model = copy.deepcopy(source.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return Outcome(_logits(model, to_score))


def blended(prior: float, source: Source, _: Batches, to_score: Batches) -> Outcome:
    """Blend each batch's own statistics with the source's, layer by layer as it passes.

    With n images in a batch and N = `prior`, (N·source + n·batch) / (N + n) for mean and variance
    (Schneider et al. 2020, arXiv 2006.16971).
    """
    model = copy.deepcopy(source.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = partial(_blended_norm, module, prior)  # type: ignore[method-assign]
    return Outcome(_logits(model, to_score))


def _blended_norm(layer: nn.BatchNorm2d, prior: float, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 2, 3))
    share = len(x) / (len(x) + prior)
    assert layer.running_mean is not None  # noqa: S101
    assert layer.running_var is not None  # noqa: S101
    mean = layer.running_mean.lerp(mean, share)
    variance = layer.running_var.lerp(variance, share)
    return functional.batch_norm(x, mean, variance, layer.weight, layer.bias, False, 0, layer.eps)


def online(source: Source, _: Batches, to_score: Batches) -> Outcome:
    """Follow the stream: each batch is scored with the statistics of all up to it."""
    return Outcome(_logits(OnlineAdapter(source.model), to_score))


def adain(source: Source, _: Batches, to_score: Batches) -> Outcome:
    """Keep the net; give each image the mean and spread of the source's images."""

    def styled(batch: Tensor) -> Tensor:
        logits: Tensor = source.model(restyle(batch, source.style))
        return logits

    return Outcome(_logits(styled, to_score))


def exact(prior: float, source: Source, to_adapt: Batches, to_score: Batches) -> Outcome:
    """Take the statistics of all images as one, with a prior of so many."""
    model = adapt(source.model, to_adapt, samples="all", memory=MEMORY, prior=prior)
    return Outcome(_logits(model, to_score), model)


def if_entropy_falls(source: Source, to_adapt: Batches, to_score: Batches) -> Outcome:
    """Adapt only where the mean entropy of the predictions falls: the simplest guard."""
    model = exact(0, source, to_adapt, to_adapt).model or source.model
    fell = _entropy(_logits(model, to_adapt)) < _entropy(_logits(source.model, to_adapt))
    chosen = model if fell else source.model
    return Outcome(_logits(chosen, to_score), chosen)


def guarded(calibrated: bool, source: Source, to_adapt: Batches, to_score: Batches) -> Outcome:
    """Let adaptkit's guard choose, with or without a calibration on the training images."""
    return followed(source, to_adapt, to_score, known(source) if calibrated else None)


def followed(
    source: Source,
    to_adapt: Batches,
    to_score: Batches,
    calibration: Calibration | None,
) -> Outcome:
    """Adapt as the guard decides."""
    decision = decide(source.model, to_adapt, calibration=calibration, memory=MEMORY)
    _, statistics = decided_statistics(
        decision, source.model, to_adapt, samples="all", memory=MEMORY
    )
    model = source.model
    if statistics is not None:
        model = statistics.apply(copy.deepcopy(model))
    return Outcome(_logits(model, to_score), model, decision.choice)


def corrected(
    shares: Sequence[float], source: Source, to_adapt: Batches, to_score: Batches
) -> Outcome:
    """Correct the statistics for a mix of classes that is known, whatever comes of it."""
    mix = ClassMix(known(source).moments, shares)
    model = adapt(source.model, to_adapt, samples="all", memory=MEMORY, correction=mix)
    return Outcome(_logits(model, to_score), model)


_CALIBRATED_ON = 1500  # images


def known(source: Source) -> Calibration:
    """Return a net's calibration on images that it was trained on, measured once."""
    if source.model not in _KNOWN:
        images = source.images
        x = images.standardised(images.x[:_CALIBRATED_ON].float() / 255).to(device())
        pairs = list(zip(x.split(256), images.y[:_CALIBRATED_ON].split(256), strict=True))
        _KNOWN[source.model] = calibrate(source.model, pairs)
    return _KNOWN[source.model]


_KNOWN: WeakKeyDictionary[nn.Module, Calibration] = WeakKeyDictionary()


def _entropy(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean())


NONE, EXACT, UPDATE_BN, PRECISE_BN = "none", "adaptkit exact", "torch update_bn", "fvcore PreciseBN"
ENTROPY = "adaptkit exact, if entropy falls"
GUARD, CALIBRATED = "adaptkit, guard", "adaptkit, guard, calibrated"
# Names in the column `method`, in the order of the tables.
METHODS: dict[str, Method] = {
    NONE: none,
    UPDATE_BN: torch_update_bn,
    PRECISE_BN: precise_bn,
    "TENT norm": tent_norm,
    "prior 8, by batch": partial(blended, 8),
    "prior 16, by batch": partial(blended, 16),
    "prior 128, by batch": partial(blended, 128),
    "adaptkit online": online,
    "adaptkit AdaIN": adain,
    EXACT: partial(exact, 0),
    "adaptkit exact, prior 16": partial(exact, 16),
    ENTROPY: if_entropy_falls,
}
# By name only: up to thirty forwards a target.
GUARDED: dict[str, Method] = {
    GUARD: partial(guarded, False),
    CALIBRATED: partial(guarded, True),
}


def installed(*names: str) -> dict[str, Method]:
    """Return the methods whose packages are there: those of these names, or all of METHODS."""
    without = () if has_precise_bn() else (PRECISE_BN,)
    chosen = names or METHODS
    every = METHODS | GUARDED
    return {name: every[name] for name in chosen if name not in without}
