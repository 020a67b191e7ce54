"""From a model and unlabelled target data to a decision, and to statistics that follow it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.batches import Forward
from adaptkit.distributed import world
from adaptkit.errors import DataError, EstimationError
from adaptkit.estimation import Progress, Resume, Statistics, estimate
from adaptkit.estimation.agreement import blended
from adaptkit.estimation.precision import Precision
from adaptkit.estimation.sample import Weight
from adaptkit.estimation.trial import Trial
from adaptkit.guard.calibrated import decide_calibrated, decide_shares
from adaptkit.guard.calibration import Calibration
from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.decision import Decision
from adaptkit.guard.typicality import severity
from adaptkit.guard.uncalibrated import (
    FEWEST_IMAGES,
    MOVED,
    TOO_FEW,
    TYPICAL,
    TYPICAL_IMAGES,
    decide_uncalibrated,
)
from adaptkit.guard.view import logits_alone
from adaptkit.guard.ways import Corrected, Full, Source, Way

SAMPLES = 256  # to decide on: some thirty forwards, and shares within three points


def decide(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    calibration: Calibration | None = None,
    shares: Tensor | Sequence[float] | None = None,
    samples: int | Literal["all"] = SAMPLES,
    prior: float = 0,
    memory: int | None = None,
    layers: norms.Select = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    forward: Forward | None = None,
    weight: Weight | None = None,
    on_bad: Literal["skip", "raise"] = "skip",
    seed: int = 0,
    progress: Progress | None = None,
) -> Decision:
    """Decide without labels whether a model gains by the target's statistics, and by which.

    In a job of several processes (see `adaptkit.distributed`) all get the first one's decision, on
    a sample of the data of all.

    The choice is among the source's statistics, those of the target in the early layers, and those
    in all layers with every predicted class counting alike; with a calibration also statistics
    corrected for the target's mix of classes (see `ClassMix`), which is estimated. Where the mean
    image shows that mix, the calibration's own distances decide. Else a forecast does, learned of
    what each choice changed in targets of the benchmarks that look like this one (see `Forecast`).
    Of a model whose output is not logits of classes nothing is known but whether its images are
    typical of the source.

    How often that is right, and where it is not: `python -m benchmarks guard`.

    Args:
        model: with its source statistics; left as it is.
        loader: unlabelled target data, as for `estimate`; labels are not read.
        calibration: what `calibrate` found of the model.
        shares: shape (K,), the target's mix of classes where it is known; needs a calibration.
        samples: how many to decide on at most.
        prior: as for `estimate`, like all that follow; every way but the source's is then blended.
        memory: as there.
        layers: as there.
        device: as there.
        precision: as there.
        forward: as there.
        weight: as there; a target's shares of classes are counted without it.
        on_bad: as there.
        seed: as there.
        progress: as there.

    Raises:
        EstimationError: as `estimate`, or the calibration or the shares are another model's.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> decide(net, [x]).choice  # as the source's statistics say
    'source'
    """
    trial = Trial(
        model,
        loader,
        samples=samples,
        prior=prior,
        memory=memory,
        layers=layers,
        device=device,
        precision=precision,
        forward=forward,
        weight=weight,
        on_bad=on_bad,
        seed=seed,
        progress=progress,
        keep=logits_alone,
    )
    return _decided(trial, calibration, shares)


def guarded_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    calibration: Calibration | None = None,
    shares: Tensor | Sequence[float] | None = None,
    samples: int | Literal["all"] | None = None,
    tolerance: float | None = None,
    mode: Literal["exact", "stream"] = "exact",
    resume: str | Path | Resume | None = None,
    **options: Any,
) -> tuple[Decision, Statistics, Statistics | None]:
    """Decide, and estimate the statistics that were chosen.

    As `decide` and then `decided_statistics`; where both take the same samples, what was run to
    decide is not run again.

    Args:
        model: left as it is.
        loader: as for `estimate`; it may be read twice.
        calibration: as for `decide`.
        shares: as for `decide`.
        samples: for the statistics, as for `estimate`.
        tolerance: as for `decided_statistics`.
        mode: as there.
        resume: as there.
        options: prior, memory, layers, device, precision, forward, weight, on_bad, seed and
            progress.

    Returns:
        The decision, and what `decided_statistics` returns.

    Raises:
        EstimationError: as `decide`.

    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    >>> x = 3 + torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> decision, seen, stored = guarded_statistics(net, [x])
    >>> seen.samples, decision.adapts == (stored is not None)
    (200, True)
    """
    trial = Trial(model, loader, samples=SAMPLES, keep=logits_alone, **options)
    decision = _decided(trial, calibration, shares)
    if mode == "exact" and tolerance is None and trial.covers(samples):
        return decision, *_tried(decision.way, trial)
    del trial  # it holds images
    options |= {"samples": samples, "tolerance": tolerance, "mode": mode, "resume": resume}
    return decision, *decided_statistics(decision, model, loader, **options)


def _decided(
    trial: Trial, calibration: Calibration | None, shares: Tensor | Sequence[float] | None
) -> Decision:
    together = world()
    with norms.evaluating(trial.model), together.united():  # whole, however many runs that takes
        found = _weighed(trial, calibration, shares)
    return together.first(found)


def _weighed(
    trial: Trial, calibration: Calibration | None, shares: Tensor | Sequence[float] | None
) -> Decision:
    if shares is not None and calibration is None:
        raise EstimationError("known shares of classes need a calibration to be used")
    source = Source().run(trial)
    try:
        k = source.probabilities.shape[1]
    except DataError:
        return _by_images_alone(trial, severity(source.seen.plain, trial.stored))
    if calibration is None:
        return decide_uncalibrated(trial, source)
    calibration.moments.check_fit(trial.model)
    if calibration.classes != k:
        raise EstimationError(
            f"Expected a calibration of {k} classes, the model's outputs, got one of "
            f"{calibration.classes}: calibrate it anew"
        )
    if shares is not None:
        return decide_shares(trial, calibration, source, shares)
    if calibration.features is None:  # by which a choice would be weighed
        return decide_uncalibrated(trial, source)
    return decide_calibrated(trial, calibration, source)


def decided_statistics(
    decision: Decision,
    model: nn.Module,
    loader: Iterable[Any],
    *,
    tolerance: float | None = None,
    mode: Literal["exact", "stream"] = "exact",
    prior: float = 0,
    resume: str | Path | Resume | None = None,
    **options: Any,
) -> tuple[Statistics, Statistics | None]:
    """Estimate the statistics that a decision chose.

    Args:
        decision: on this model and loader.
        model: left as it is.
        loader: as for `estimate`, like all that follows.
        tolerance: not for a choice of "early" or "balanced".
        mode: "stream" is for plain AdaBN alone; all else takes as many samples as "exact" does.
        prior: as for `estimate`.
        resume: as for `estimate`, where the choice is streamed.
        options: samples, memory, layers, device, precision, forward, weight, on_bad, seed and
            progress.

    Returns:
        What the layers see of the target behind those statistics, and what they are to store, None
        where that is what they have.
    """
    way = decision.way
    if isinstance(way, (Full, Corrected)):
        mix = None
        if isinstance(way, Corrected):
            mix, mode = ClassMix(way.moments, torch.from_numpy(way.shares)), "exact"
        seen = estimate(
            model,
            loader,
            tolerance=tolerance,
            mode=mode,
            prior=prior,
            correction=mix,
            resume=resume if mode == "stream" else None,
            **options,
        )
        given = seen.corrected(mix) if mix else seen
        return seen, blended(world(), given, model, prior) if prior else given
    return _tried(way, Trial(model, loader, prior=prior, keep=logits_alone, **options))


def _tried(way: Way, trial: Trial) -> tuple[Statistics, Statistics | None]:
    """Return what the layers see of a trial's sample behind a way's statistics, and those."""
    together = world()
    with norms.evaluating(trial.model), together.united():
        found = way.run(trial).seen
        plain = found.plain.to("cpu")
        if isinstance(way, Source):
            new = None
        else:
            new = found.statistics.to("cpu") if trial.prior or not isinstance(way, Full) else plain
    return together.first((plain, new))


def _by_images_alone(trial: Trial, shift: float) -> Decision:
    figures: dict[str, float | None] = {"severity": shift, "severity_typical": TYPICAL}
    if len(trial) < FEWEST_IMAGES or shift <= TYPICAL:
        why = TYPICAL_IMAGES if shift <= TYPICAL else TOO_FEW
        return Decision(Source(), "source", (why,), figures, None, False, len(trial))
    nothing = "the model gives no classes, so nothing else was weighed."
    return Decision(Full(), "full", (MOVED, nothing), figures, None, False, len(trial))
