"""From a model, and mostly the checkpoint that it was made from, to files."""

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptkit import __version__, norms
from adaptkit.architectures import build
from adaptkit.checkpoint import archive, files, fit
from adaptkit.checkpoint.checkpoint import Checkpoint
from adaptkit.checkpoint.content import FORMAT, STATE_DICT, Content
from adaptkit.distributed.sharded import is_dealt_out
from adaptkit.errors import CheckpointError, OutputError
from adaptkit.exact import same_values
from adaptkit.files import check_outputs, write_files
from adaptkit.guard import Calibration
from adaptkit.layers.adain import Style
from adaptkit.program import program_bytes
from adaptkit.transform import Transform

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors", files.INDEX, ".pt2")


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    like: Checkpoint | None = None,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    transform: Transform | None = None,
    style: Style | None = None,
    adapted: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    force: bool = False,
) -> Path:
    """Write a checkpoint, whole or not at all, and return its path.

    With `like`, the file has that one's nesting, keys, shapes and dtypes and everything else that
    it holds; tensors that the model did not change keep their bytes. A name with the same suffix
    gives the same kind of file. Without `like`, the file is of format adaptkit/1.

    Args:
        path: ending in .pt, .pth, .bin, .ckpt or .tar for torch's files, in .safetensors, or like
            `like` in .safetensors.index.json (the shards lie beside it) or .pt2.
        model: whose weights are written.
        like: the checkpoint that the model was made from; its file is never written.
        arch: needed without `like`, as "adaptkit:small_cnn" or "torchvision:resnet18".
        arch_kwargs: for the architecture's constructor.
        classes: the outputs' names in order.
        transform: from an image to the model's input.
        style: of the images that the model was trained on, in units of [0, 1]; what `--method
            adain` restyles others to. Without `like`.
        adapted: a record of where the statistics come from; by default it names `like`.
        calibration: what `adaptkit.calibrate` found, packed into a twentieth of the
            file, or 1 MiB where that is more. By default that of `like` stays, if it has one.
        force: replace a file that exists.

    Raises:
        OutputError: `path` exists, is that of `like`, cannot be written, or its kind of file
            cannot hold what `like` holds.
        CheckpointError: the model does not fit `arch` or `like`, its values do not fit the dtypes
            of `like`, or `arch_kwargs` or `adapted` hold what JSON cannot; or FSDP deals it out.
    """
    path = Path(path)
    if is_dealt_out(model):
        raise CheckpointError(
            "a model that FSDP deals out over processes is in none of them to be saved: let the "
            "first one put the statistics into a whole one, statistics.apply(model), and save that"
        )
    if like is None:
        check_outputs([path], force=force)
        write_files(
            {
                path: _new(
                    path,
                    model,
                    arch,
                    arch_kwargs,
                    classes,
                    transform,
                    style,
                    adapted,
                    _packed(calibration, model),
                )
            }
        )
        return path
    check_outputs(output_paths(path, like), inputs=like.files, force=force)
    record = adapted or {
        "source": like.path.name,
        "sha256": like.sha256,
        "adaptkit": __version__,
    }
    packed = None if calibration is None else _packed(calibration, model)
    write_files(checkpoint_files(path, model, like=like, adapted=record, calibration=packed))
    return path


def output_paths(path: Path, like: Checkpoint, *, pack: bool = False) -> list[Path]:
    """Return the files that a checkpoint like another takes: `path`, and shards if it has some.

    Args:
        path: where it is to go.
        like: the checkpoint that it is made from.
        pack: whether only statistics are written, to `path` alone.

    Raises:
        OutputError: that kind of file cannot hold what `like` holds.
    """
    if pack:
        return [path]
    program = like.content.kind == "program"
    if program != (path.suffix == ".pt2"):
        raise OutputError(
            f"cannot write {path}: {like.path} is {'a' if program else 'no'} program, and only a "
            f"program is written as one: choose a name ending in "
            f"{'.pt2' if program else suffix_of(like.path) or '.pt'}"
        )
    if files.is_index(path):
        return [path, *files.shards_of(path, like.content)]
    if path.suffix == ".safetensors":
        archive.check_header(path, like.content)
    return [path]


def checkpoint_files(
    path: Path,
    model: nn.Module,
    *,
    like: Checkpoint,
    adapted: Mapping[str, Any] | None,
    transform: Transform | None = None,
    calibration: bytes | None = None,
) -> dict[Path, bytes]:
    """Return what `save_checkpoint` would write, for writing with other files at once.

    `transform` and `calibration` are recorded in place of those of `like`, as is `adapted`.
    """
    state_dict = _changed(like, model)
    stated = None if transform is None else transform.to_dict()
    record = None if adapted is None else _as_json("adapted", adapted)
    content = like.content.changed(state_dict, record, stated, _as_text(calibration))
    if content.kind == "program":
        return {path: _program(content, like)}
    if files.is_index(path):
        return files.to_shards(path, content)
    return {path: _serialised(path, content, same=suffix_of(path) == suffix_of(like.path))}


def suffix_of(path: Path) -> str:
    """Return the end of a name that says which kind of file it is, of one word or several.

    >>> suffix_of(Path("model.safetensors.index.json")), suffix_of(Path("best.pth.tar"))
    ('.safetensors.index.json', '.pth.tar')
    """
    if files.is_index(path):
        return files.INDEX
    return "".join(path.suffixes[-2:]) if path.suffix == ".tar" else path.suffix


def _serialised(path: Path, content: Content, *, same: bool = False) -> bytes:
    """Return a content in the kind of file that a name says, or that it came in if `same`."""
    if path.suffix not in SUFFIXES and not same:
        raise OutputError(f"Expected a name ending in {', '.join(SUFFIXES)}, got {path}")
    if content.kind == "safetensors" if same else path.suffix == ".safetensors":
        return archive.to_safetensors(path, content)
    return archive.to_torch(content)


def _program(content: Content, like: Checkpoint) -> bytes:
    then = like.state_dict
    changed = {k: v for k, v in content.state_dict.items() if v is not then[k]}
    return program_bytes(content.origin, changed, content.fields)


def _new(
    path: Path,
    model: nn.Module,
    arch: str | None,
    arch_kwargs: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
    transform: Transform | None,
    style: Style | None,
    adapted: Mapping[str, Any] | None,
    calibration: bytes | None,
) -> bytes:
    if arch is None:
        raise CheckpointError("to save a checkpoint, give arch= or like=")
    state_dict = _plain(norms.unwrap(model).state_dict())
    fresh = build(arch, arch_kwargs, state_dict)
    fit.load_weights(Path("the model"), arch, fresh, state_dict)
    tree = {
        "format": FORMAT,
        "arch": arch,
        "arch_kwargs": _as_json("arch_kwargs", arch_kwargs or {}),
        "classes": None if classes is None else [str(name) for name in classes],
        "transform": None if transform is None else transform.to_dict(),
    }
    if style is not None:
        tree["style"] = {"mean": style.mean.tolist(), "std": style.std.tolist()}
    if adapted:
        tree["adapted"] = _as_json("adapted", adapted)
    if calibration is not None:
        tree["calibration"] = _as_text(calibration)
    content = Content("torch", {**tree, STATE_DICT: state_dict}, (STATE_DICT,))
    return _serialised(path, content)


def _changed(like: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Take over the source's tensors, and of the model's those that differ, in the stored dtype."""
    model = norms.unwrap(model)
    current = model.state_dict()
    merged = copy.copy(like.state_dict)  # with the attribute in which torch keeps versions
    superfluous = fit.unused(model, like.naming.of(like.state_dict))
    for key, name in like.naming.names.items():
        if name in superfluous:
            continue
        stored, new = like.state_dict[key], current.get(name)
        if new is None or new.shape != stored.shape:
            raise CheckpointError(f"the model is not of {like.path}'s form: '{key}' does not fit")
        new = new.detach().cpu()
        if same_values(new, stored.to(new.dtype)):
            continue
        merged[key] = new.to(stored.dtype)
        if new.isfinite().all() and not merged[key].isfinite().all():
            raise CheckpointError(
                f"'{key}' of the model holds values too large for the {stored.dtype} of "
                f"{like.path}: convert that file to float32 or bfloat16 first"
            )
    return merged


def _as_json(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in what JSON can hold, which every kind of file can and any reader reads."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(record)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected {name} to be what JSON can hold: {error}") from None
    return copied


def budget(size: int) -> int:
    """Return the bytes that a calibration may take in a file of this size, as text.

    A twentieth of it, or 1 MiB where that is more: a small model has as many classes as a large.
    """
    return max(size // 20, 2**20) * 3 // 4  # four letters hold three bytes


def _packed(calibration: Calibration | None, model: nn.Module) -> bytes | None:
    if calibration is None:
        return None
    calibration.moments.check_fit(model)
    size = sum(t.nbytes for t in norms.unwrap(model).state_dict().values())
    return calibration.to_bytes(budget(size))


def _as_text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in state_dict.items()}
