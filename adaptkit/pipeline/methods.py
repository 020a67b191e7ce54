"""What adapts: the model to the images (AdaBN), or the images to the source (AdaIN)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter
from typing import Any

import torch
from torch import nn

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader
from adaptkit.errors import EstimationError
from adaptkit.estimation import Statistics, estimate
from adaptkit.guard import ClassMix, Decision, guarded_statistics
from adaptkit.layers import Style
from adaptkit.norms import norm_layers, read, why_nothing_to_adapt
from adaptkit.pipeline.scoring import Scores
from adaptkit.report import Row
from adaptkit.report.layers import layer_rows, target_of
from adaptkit.transform import Transform

METHODS = ("adabn", "adain")
_OF_ADABN = (  # arguments of adapt_folder that adain has no use for
    "mode",
    "samples",
    "tolerance",
    "memory",
    "precision",
    "layers",
    "prior",
    "stats_only",
    "certify",
    "holdout",
    "class_shares",
    "guard",
    "domains",
    "input_fit",
    "resume",
)


@dataclass(frozen=True)
class Adapted:
    """A model and the way of its images, after adapting.

    Args:
        model: with the target's statistics, or the source's own model.
        to_score: the loader that was to be scored, its images prepared as the adapted model wants.
        seen: the target's moments at the norm layers, None where there are none.
        applied: what stands in the model's layers; None where that has not changed.
        transform: None where that has not changed.
        rows: on the norm layers, where `compare` cannot know them.
        notes: what has to be said in words.
    """

    model: nn.Module
    to_score: ImageLoader
    seen: Statistics | None
    applied: Statistics | None = None
    transform: Transform | None = None
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def check_method(
    method: str, arguments: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> None:
    """Refuse arguments that a method has no use for; `parameters` says what they are by default.

    Raises:
        EstimationError: the method is unknown, or an argument differs from what it is by default.
    """
    if method not in METHODS:
        raise EstimationError(f"Expected method to be one of {', '.join(METHODS)}, got {method!r}")
    if method == "adain":
        given = [k for k in _OF_ADABN if arguments[k] != parameters[k].default]
        if given:
            raise EstimationError(
                f"method adain restyles each image by itself and estimates no statistics of the "
                f"target: leave out {', '.join(k.replace('_', '-') for k in given)}"
            )


def check_layers(checkpoint: Checkpoint) -> None:
    """Refuse a model in which AdaBN has nothing to adapt."""
    if not norm_layers(checkpoint.model):
        raise EstimationError(
            f"{checkpoint.path} ({checkpoint.arch}) has no layer with data-set statistics to "
            f"adapt: {why_nothing_to_adapt(checkpoint.model)}; --method adain needs none"
        )


def check_images(*loaders: ImageLoader) -> None:
    """Refuse samples that are ready for the model, for what works on images."""
    for loader in loaders:
        if loader.listing.shape is not None:
            raise EstimationError(
                f"{loader.listing.source} holds what the model takes as it is: --method adain and "
                f"--input-fit are for images"
            )


def adabn(
    model: nn.Module,
    to_adapt: ImageLoader,
    to_score: ImageLoader,
    *,
    prior: float,
    correction: ClassMix | None,
    layers: Sequence[str] | None,
    **options: Any,
) -> Adapted:
    """Give a copy of the model the target's statistics, corrected, and blended by `prior`."""
    seen = estimate(model, to_adapt, layers=layers, prior=prior, correction=correction, **options)
    applied = seen.corrected(correction) if correction else seen
    if prior:
        applied = applied.blend(model, prior=prior)
    return Adapted(applied.apply(copy.deepcopy(model)), to_score, seen, applied)


def guarded(
    model: nn.Module, to_adapt: ImageLoader, to_score: ImageLoader, **how: Any
) -> tuple[Decision, Adapted]:
    """Give a copy of the model the statistics that the guard chooses.

    Args:
        model: left as it is.
        to_adapt: what the guard decides on, and the statistics are of.
        to_score: as for `adabn`.
        how: of `guarded_statistics`.
    """
    decision, seen, applied = guarded_statistics(model, to_adapt, **how)
    adapted = copy.deepcopy(model)
    if applied is not None:
        applied.apply(adapted)
    return decision, Adapted(adapted, to_score, seen, applied)


def adain(
    model: nn.Module,
    to_score: ImageLoader,
    style: Style | None,
    **options: Any,
) -> Adapted:
    """Keep the model and restyle each image to the source's.

    The rows say how far the target lies from the statistics that the model stores, as the images
    are and as they are restyled.

    Args:
        model: left as it is.
        to_score: the images, as the model takes them so far.
        style: the source's; None takes the transform's own mean and standard deviation for it.
        options: of `estimate`.
    """
    notes = []
    transform = to_score.transform
    assert transform is not None  # noqa: S101  they are images
    if style is None:
        style = Style(torch.tensor(transform.mean), torch.tensor(transform.std))
        notes.append(
            "the style is the transform's mean and std, a stand-in; the source's own comes from "
            "--source-data, or from a checkpoint that stores it (save_checkpoint(..., style=))."
        )
    restyled = transform.towards(style)
    after = to_score.prepared_by(restyled)
    if not norm_layers(model):
        return Adapted(model, after, None, transform=restyled, notes=tuple(notes))
    seen = estimate(model, to_score, **options)
    then = estimate(model, after, **options)
    own = {name: read(layer) for name, layer in norm_layers(model).items()}
    rows = layer_rows(own, own, target_of(own, seen), target_of(own, then))
    return Adapted(model, after, seen, transform=restyled, rows=tuple(rows), notes=tuple(notes))


def without_layers(scores: Scores) -> Scores:
    """Return scores that say nothing of norm layers: the method leaves them alone."""
    return None if scores is None else replace(scores, layers={})
