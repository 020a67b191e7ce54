"""From a file to a checkpoint."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adaptkit import norms
from adaptkit.architectures import arguments_of, default_transform, runs_code
from adaptkit.checkpoint import archive, fields, files, fit, nesting
from adaptkit.checkpoint.checkpoint import Checkpoint
from adaptkit.checkpoint.content import FORMAT, STATE_DICT, Content
from adaptkit.checkpoint.nesting import Naming
from adaptkit.errors import CheckpointError, shown
from adaptkit.program import is_program, read_program
from adaptkit.recognition import known_as, recognise
from adaptkit.transform import Transform

PROGRAM = "torch.export"  # the architecture of a program, which brings its own


def load_checkpoint(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint and build its model. No code in the file runs.

    Args:
        path: a file of torch's (.pt, .pth, .bin, .ckpt, whatever it is called) or of safetensors';
            the index of a sharded safetensors checkpoint; or a torch.export program (.pt2). The
            state dict may stand by itself or, as training scripts write it, in a dict under
            "state_dict", "model", "ema" and others (`nesting.WRAPPERS`), in any nesting. Its keys
            may have the prefixes of DataParallel, torch.compile, Lightning modules and such.
        arch: such as "torchvision:resnet18", "timm:resnet50" or "nets.py:make", see
            `architectures.build`; overrides what the file says. Where neither names an
            architecture, it is found in the keys and shapes (`recognition.recognise`).
        arch_kwargs: for the architecture's constructor, beside what the shapes show.

    Raises:
        CheckpointError: the file is missing or broken, would run code, is of no known architecture,
            does not fit the named one, or holds bad statistics.

    >>> import tempfile
    >>> from adaptkit import save_checkpoint
    >>> from adaptkit.models import SmallCNN
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(f"{folder}/net.pt", SmallCNN(), arch="adaptkit:small_cnn")
    ...     load_checkpoint(path).arch
    'adaptkit:small_cnn'
    """
    path = Path(path)
    raw = files.read(path)
    if is_program(raw):
        return _program(path, raw, arch or arch_kwargs)
    if files.is_index(path):
        content, sha256, size = files.parse_index(path, raw)
    else:
        content, sha256, size = archive.parse(path, raw), hashlib.sha256(raw).hexdigest(), len(raw)
    del raw
    errors: list[CheckpointError] = []
    for place in _places(content):
        try:
            archive.check_tensors(path, place.state_dict, size)
            return _loaded(path, sha256, place, arch, dict(arch_kwargs or {}))
        except CheckpointError as error:
            under = f" (the weights under '{'.'.join(place.path)}')" if place.path else ""
            errors.append(CheckpointError(f"{error}{'' if place.is_ours else under}"))
    raise errors[0]


def _places(content: Content) -> list[Content]:
    """Return a content once for each state dict in it; of several, that which fits is meant."""
    if content.kind not in ("torch", "legacy torch") or content.is_ours or not content.path:
        return [content]
    return [replace(content, path=place) for place in nesting.find(content.tree)]


def _loaded(
    path: Path, sha256: str, content: Content, arch: str | None, given: dict[str, Any]
) -> Checkpoint:
    said, found, ways = content.fields, content.state_dict, nesting.namings(content.state_dict)
    spec = arch or said.get("arch")
    kwargs = {} if arch and arch != said.get("arch") else dict(said.get("arch_kwargs") or {})
    recognised = not spec
    if not spec:
        spec, ways = _recognised(path, content, ways)
        kwargs = {**arguments_of(spec, ways[0].of(found)), **kwargs}
    elif not arch and runs_code(spec):
        raise CheckpointError(
            f"{path} is of the architecture {shown(spec)}, whose code runs only if you name it: "
            f"give --arch {shown(spec)} (arch=)"
        )
    elif kwargs:
        fit.check_size(path, spec, kwargs, found)
    kwargs |= given
    model, naming = fit.built(path, spec, kwargs, found, ways)
    _check_statistics(path, model)
    stated = fields.transform_of(path, said)
    published = None if stated else default_transform(spec)
    classes = said.get("classes")
    return Checkpoint(
        path=path,
        sha256=sha256,
        model=model,
        arch=spec,
        arch_kwargs=kwargs,
        recognised=recognised,
        classes=None if classes is None else tuple(classes),
        transform=stated or published,
        transform_from="checkpoint" if stated else "architecture" if published else None,
        input_shape=None,
        naming=naming,
        content=content,
    )


def _recognised(path: Path, content: Content, ways: list[Naming]) -> tuple[str, list[Naming]]:
    """Return the architecture that a state dict is of, and how it names it."""
    found = content.state_dict
    for way in sorted(ways, key=lambda way: len(way.outside)):
        if spec := known_as(way.of(found)):
            return spec, [way]
    whole = [way for way in ways if not way.outside]
    barest = min(whole, key=lambda way: len("".join(way.names.values())))
    named = content.tree.get("arch") if content.path else None  # in the terms of what wrote it
    what = f"{path} does not say which architecture it is of, and"
    if isinstance(named, str):
        what = f"{path} says it is of '{shown(named)}', which may be anyone's name for it, and"
    return recognise(barest.of(found), what=what), [barest]


def _program(path: Path, raw: bytes, arch: object) -> Checkpoint:
    if arch:
        raise CheckpointError(f"{path} is a program that holds its own architecture: drop --arch")
    program = read_program(path, raw)
    said = program.record
    fields.check_types(path, said)
    transform: Transform | None = fields.transform_of(path, said)
    _check_statistics(path, program.model)
    classes = said.get("classes")
    tree = {"format": FORMAT, **said, STATE_DICT: program.state_dict}
    return Checkpoint(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        model=program.model,
        arch=PROGRAM,
        arch_kwargs={},
        recognised=False,
        classes=None if classes is None else tuple(classes),
        transform=transform,
        transform_from="checkpoint" if transform else None,
        input_shape=_fixed(program.input_shape),
        naming=Naming({key: key for key in program.state_dict}),
        content=Content("program", tree, (STATE_DICT,), origin=raw),
    )


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, int, int] | None:
    channels, height, width = shape[1:]
    return (channels, height, width) if channels and height and width else None


def _check_statistics(path: Path, model: nn.Module) -> None:
    for name, layer in norms.norm_layers(model).items():
        stored = norms.read(layer)
        finite = bool(stored.mean.isfinite().all() and stored.variance.isfinite().all())
        if not finite or bool((stored.variance < 0).any()):
            what = "a negative variance" if finite else "NaN or infinity"
            raise CheckpointError(f"{path}: the statistics of norm layer '{name}' hold {what}")
