"""From files to what a run works on: a checkpoint as its user describes it, and images for it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from adaptkit import data
from adaptkit.batches import device_of
from adaptkit.checkpoint import Checkpoint, load_checkpoint
from adaptkit.checkpoint.nesting import find
from adaptkit.data import ImageLoader, Place, class_names
from adaptkit.errors import AdaptkitError, CheckpointError, few
from adaptkit.transform import Transform


class Said(TypedDict, total=False):
    """What a user says of a checkpoint; all may be left out, or be None.

    Args:
        arch: see `load_checkpoint`.
        arch_kwargs: see `load_checkpoint`.
        image_size: (height, width) of what the model sees; this and the next five take the place
            of what the checkpoint says, or what is published with the architecture's weights.
        mean: one per channel or one for all, in units of [0, 1].
        std: one per channel or one for all, in units of [0, 1].
        channels: 1 (grey) or 3 (RGB).
        resize: "stretch" or "crop", see `Transform`.
        interpolation: "bilinear", "bicubic" and others, see `Transform`.
        classes: a file of the outputs' names, one a line, in order.
    """

    arch: str | None
    arch_kwargs: Mapping[str, Any] | None
    image_size: tuple[int, int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    channels: int | None
    resize: str | None
    interpolation: str | None
    classes: str | Path | None


_AXES = {3: " (channels, height, width)", 2: " (channels, length)", 1: " features"}
_OF_IMAGES = ("image_size", "mean", "std", "channels", "resize", "interpolation")


def open_checkpoint(
    path: str | Path,
    **said: Unpack[Said],
) -> Checkpoint:
    """Read a checkpoint, and let its user say what it does not, or says otherwise.

    Args:
        path: see `load_checkpoint`.
        said: see `Said`.

    Raises:
        AdaptkitError: what is wrong with the checkpoint or an argument.
    """
    checkpoint = load_checkpoint(path, arch=said.get("arch"), arch_kwargs=said.get("arch_kwargs"))
    given = {name: value for name in _OF_IMAGES if (value := said.get(name)) is not None}
    if given:
        transform = _overridden(checkpoint, given)
        checkpoint = replace(checkpoint, transform=transform, transform_from="options")
    if (file := said.get("classes")) is not None:
        checkpoint = replace(checkpoint, classes=class_names(file))
    return checkpoint


@dataclass(frozen=True)
class Head:
    """What a model gives.

    Args:
        kind: "classes", logits of shape (N, K); "pixels", logits of shape (N, K, H, W), or a dict
            with them; "other", which nothing here can score.
        size: K, or None.
    """

    kind: Literal["classes", "pixels", "other"]
    size: int | None


def head_of(checkpoint: Checkpoint, target: str | Place | None = None) -> Head:
    """Pass a blank sample through a checkpoint's model and look at what comes out.

    Args:
        checkpoint: of the model.
        target: where samples lie that may be ready for the model; images have the shape that the
            checkpoint's transform makes.

    Raises:
        DataError: what is wrong with the target.
        CheckpointError: the checkpoint does not say how images are prepared, the model does not
            take such samples, or has another number of outputs than there are class names.
    """
    transform = checkpoint.transform
    shape = None if target is None else data.shape_of(target, pixels=transform is not None)
    kind = "samples" if shape else "images"
    if shape is None:
        if transform is None:
            raise _unprepared(checkpoint, {})
        shape = (transform.channels, *transform.image_size)
    try:
        with torch.no_grad():
            blank = torch.zeros(1, *shape, device=device_of(checkpoint.model))
            head = _head(checkpoint.model(blank))
    except Exception as error:  # noqa: BLE001  a model may raise anything
        reason = f"{type(error).__name__} {next(iter(str(error).strip().splitlines()), ''):.200}"
        takes = _features(checkpoint.model) if len(shape) == 1 else None
        if takes is not None and takes != shape[0]:
            what = "leave out what is no feature" if takes < shape[0] else "some are missing"
            reason = f"its first layer takes {takes} features: {what}"
        raise CheckpointError(
            f"{checkpoint.path} ({checkpoint.arch}) does not take {kind} of "
            f"{' x '.join(map(str, shape))}{_AXES.get(len(shape), '')}: {reason}"
        ) from None
    if checkpoint.classes and head.size and len(checkpoint.classes) != head.size:
        raise CheckpointError(
            f"{checkpoint.path} has {head.size} outputs, but {len(checkpoint.classes)} class names "
            f"are given ({few(checkpoint.classes)})"
        )
    return head


def open_samples(
    checkpoint: Checkpoint,
    head: Head,
    target: Place,
    batch_size: int,
    workers: int,
    fast_jpeg: bool = False,
    memory: int | None = None,
) -> ImageLoader:
    """Open a target as a checkpoint's model takes samples; of labels only those of classes count.

    Raises:
        DataError: what is wrong with the target.
    """
    named = head.kind == "classes"
    loader = data.open(
        target,
        transform=checkpoint.transform,
        classes=checkpoint.classes if named else None,
        outputs=head.size if named else None,
        batch_size=batch_size,
        workers=workers,
        memory=memory,
        fast_jpeg=fast_jpeg,
    )
    listing = loader.listing
    if named or (listing.labels is None and listing.partly is None):
        return loader
    return loader.of(replace(listing, labels=None, classes=None, partly=None))


def notes_on(checkpoint: Checkpoint, head: Head | None = None) -> list[str]:
    """Return, in words, what was found or assumed that its user may want to know."""
    notes = []
    if checkpoint.recognised:
        count = checkpoint.arch_kwargs.get("num_classes")
        classes = "" if count is None else f", {count} {'class' if count == 1 else 'classes'}"
        notes.append(f"recognised {checkpoint.arch}{classes}.")
    content = checkpoint.content
    beside = [".".join(place) for place in find(content.tree) if place != content.path]
    if content.path and beside:
        notes.append(
            f"took the weights under '{'.'.join(content.path)}'; those under {few(beside)} stay as "
            f"they are."
        )
    if outside := checkpoint.naming.outside:
        one = len(outside) == 1
        said = "tensor is not the model's and stays" if one else "tensors are not the model's, stay"
        notes.append(f"{len(outside)} {said}: {few(outside)}.")
    if head and head.kind == "other":
        notes.append("the model gives no logits of classes or pixels, so nothing is scored.")
    return notes


def preparation(checkpoint: Checkpoint, shape: tuple[int, ...] | None = None) -> str:
    """Return, in a line or two, how images are prepared and who says so.

    `shape` is of samples that are ready for the model, if they are.
    """
    if shape is not None:
        return f"{' x '.join(map(str, shape))}{_AXES.get(len(shape), '')}, as they are"
    transform = checkpoint.transform
    if transform is None:
        return "not known"
    height, width = transform.image_size
    way = {"stretch": "stretched", "crop": "centre crop"}[transform.resize]
    if transform.resize == "crop" and transform.resize_size:
        way = f"shorter side to {transform.resize_size}, centre crop"
    if transform.interpolation != "bilinear":
        way += f", {transform.interpolation}"
    colour = "RGB" if transform.channels == 3 else "grey"
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (transform.mean, transform.std))
    said_by = {
        "checkpoint": "from the checkpoint",
        "architecture": "as published for the architecture",
        "options": "from the options",
    }[checkpoint.transform_from or "options"]
    line = f"{height} x {width} ({way}), {colour}, mean {mean}, std {std}"
    if transform.gain and transform.offset:
        gain, offset = (" ".join(f"{v:.3g}" for v in x) for x in (transform.gain, transform.offset))
        line += f", then gain {gain}, offset {offset}"
    return f"{line}, {said_by}"


def spelled_out(said: Said) -> dict[str, Any]:
    """Return all that may be said, None where nothing is.

    Raises:
        TypeError: something else is said.
    """
    if unknown := sorted(said.keys() - Said.__annotations__.keys()):
        raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
    return {**dict.fromkeys(Said.__annotations__), **said}


def source_files(said: Said) -> list[Path]:
    """Return the files that a user names: of classes, and of code."""
    code = (said.get("arch") or "").rpartition(":")[0]
    named = [said.get("classes"), code if code.endswith(".py") else None]
    return [Path(file) for file in named if file]


def stated(checkpoint: Checkpoint) -> Transform | None:
    """Return the transform that an adapted file has to state anew, as its user changed it."""
    return checkpoint.transform if checkpoint.transform_from == "options" else None


def _unprepared(checkpoint: Checkpoint, given: Collection[str]) -> CheckpointError:
    """Say what is not known of how images are prepared; a guess could do harm unseen."""
    known = {*given, *(["image_size"] if checkpoint.input_shape else [])}
    wanted = {"image_size": "--image-size", "mean": "--mean", "std": "--std"}
    missing = [option for name, option in wanted.items() if name not in known]
    return CheckpointError(
        f"{checkpoint.path} does not say how images are prepared: give {', '.join(missing)} as in "
        f"training (ImageNet's are --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
    )


def _overridden(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Transform:
    """Return a checkpoint's transform with some fields changed, or a new one of them."""
    base = checkpoint.transform
    if base is None and checkpoint.input_shape:
        count, *size = checkpoint.input_shape
        given = {"image_size": tuple(size), "channels": count, **given}
    if base is None and not {"image_size", "mean", "std"} <= given.keys():
        raise _unprepared(checkpoint, given)
    channels = given.get("channels") or (base.channels if base else 3)
    fields = dict(given)
    for name in ("mean", "std"):
        if name in given:  # one for all channels, or one each
            values = tuple(given[name])
            fields[name] = values * channels if len(values) == 1 else values
    try:
        if base is None:
            return Transform(**fields)
        if "image_size" in given and base.resize == "crop" and base.resize_size:
            shown_share = base.resize_size / max(base.image_size)
            fields["resize_size"] = round(max(given["image_size"]) * shown_share)
        return replace(base, **fields)
    except AdaptkitError as error:
        raise CheckpointError(f"{error}: give --image-size, --mean, --std to fit") from None


def _features(model: nn.Module) -> int | None:
    """Return how many features a model's first layer takes, where that says so."""
    first = next((m for m in model.modules() if [*m.parameters(recurse=False)]), model)
    found = getattr(first, "in_features", getattr(first, "num_features", None))
    return found if isinstance(found, int) else None


def _head(outputs: Any) -> Head:
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits", outputs.get("out", outputs))
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs)
    if isinstance(outputs, Tensor) and outputs.ndim in (2, 4) and outputs.shape[1] > 1:
        return Head("classes" if outputs.ndim == 2 else "pixels", outputs.shape[1])
    return Head("other", None)
