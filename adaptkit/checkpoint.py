"""Checkpoints, format adaptkit/1 and plain state dicts, read without running code in them."""

import copy
import hashlib
import io
import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from adaptkit import __version__, norms
from adaptkit.architectures import arguments_of, build, default_transform
from adaptkit.errors import AdaptkitError, CheckpointError, OutputError, few, shown
from adaptkit.files import check_outputs, write_files
from adaptkit.layers.adain import Style
from adaptkit.recognition import recognise
from adaptkit.transform import Transform

FORMAT = "adaptkit/1"
SUFFIXES = (".pt", ".pth", ".safetensors")
_METADATA = "safetensors_metadata"  # where `header` keeps what others wrote into a safetensors one
_TRAINING = "training"  # where `header` keeps what a training script wrote beside a state dict
_PARALLEL = "module."  # what stands before every key of a model saved inside DataParallel


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Args:
        path: of the file.
        sha256: of its bytes.
        model: in eval mode on the CPU, the file's weights in it.
        arch: such as "torchvision:resnet18".
        arch_kwargs: for the architecture's constructor.
        recognised: whether the architecture was found in the keys and shapes, being named nowhere.
        classes: the outputs' names, or None where the file does not say.
        transform: from an image to the model's input, or None where that is not known.
        state_dict: the tensors as found, with their own dtypes.
        header: everything else in the file; without "format" it was a plain state dict, or, with
            "training", one under "state_dict" with those fields beside it, none of them read.
    """

    path: Path
    sha256: str
    model: nn.Module
    arch: str
    arch_kwargs: dict[str, Any]
    recognised: bool
    classes: tuple[str, ...] | None
    transform: Transform | None
    state_dict: dict[str, Tensor]
    header: dict[str, Any]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tensors, names and all: the same in any container."""
        digest = hashlib.sha256()
        for key in sorted(self.state_dict):
            value = self.state_dict[key].detach().cpu().contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def adapted(self) -> dict[str, Any] | None:
        """Where the statistics come from, if the file was adapted; else None."""
        return self.header.get("adapted")

    @property
    def style(self) -> Style | None:
        """The channel statistics of the images that the model was trained on, if stored."""
        stored = self.header.get("style")
        if stored is None:
            return None
        return Style(torch.tensor(stored["mean"]), torch.tensor(stored["std"]))


def load_checkpoint(path: str | Path, *, arch: str | None = None) -> Checkpoint:
    """Read a checkpoint and build its model. No code in the file runs.

    Args:
        path: .pt, .pth or .safetensors: a dict of format adaptkit/1, a plain state dict, or a dict
            with one under "state_dict". Keys may begin with DataParallel's "module.".
        arch: such as "torchvision:resnet18"; overrides what the file says. Where neither names an
            architecture, it is found in the keys and shapes (`recognition.recognise`).

    Raises:
        CheckpointError: the file is missing or broken, would run code, is of no known architecture,
            does not fit the named one, or holds bad statistics.

    >>> import tempfile
    >>> from adaptkit.models import SmallCNN
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(f"{folder}/net.pt", SmallCNN(), arch="adaptkit:small_cnn")
    ...     load_checkpoint(path).arch
    'adaptkit:small_cnn'
    """
    path = Path(path)
    content = _bytes_of(path)
    header, state_dict = _parsed(path, content)
    named = _without_prefix(state_dict)
    spec = arch or header.get("arch")
    kwargs = {} if arch and arch != header.get("arch") else dict(header.get("arch_kwargs") or {})
    recognised = not spec
    if not spec:
        what = f"{path} does not say which architecture it is of, and"
        spec = recognise(named, what=what)
        kwargs = {**arguments_of(spec, named), **kwargs}
    model = build(spec, kwargs, named)
    _load_weights(path, spec, model, named)
    _check_statistics(path, model)
    classes, transform = header.get("classes"), header.get("transform")
    return Checkpoint(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        model=model,
        arch=spec,
        arch_kwargs=kwargs,
        recognised=recognised,
        classes=None if classes is None else tuple(classes),
        transform=_transform(path, transform) if transform else default_transform(spec),
        state_dict=state_dict,
        header=header,
    )


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
    force: bool = False,
) -> Path:
    """Write a checkpoint, whole or not at all, and return its path.

    With `like`, the file has that one's kind, keys, shapes and dtypes; tensors that the model did
    not change keep their bytes. Without it, the file is of format adaptkit/1.

    Args:
        path: ending in .pt, .pth or .safetensors.
        model: whose weights are written.
        like: the checkpoint that the model was made from; its file is never written.
        arch: needed without `like`, as "adaptkit:small_cnn" or "torchvision:resnet18".
        arch_kwargs: for the architecture's constructor.
        classes: the outputs' names in order.
        transform: from an image to the model's input.
        style: of the images that the model was trained on, in units of [0, 1]; what `--method
            adain` restyles others to. Without `like`.
        adapted: a record of where the statistics come from; by default it names `like`.
        force: replace a file that exists.

    Raises:
        OutputError: `path` exists, is that of `like`, cannot be written, or its kind of file
            cannot hold what `like` holds beside tensors.
        CheckpointError: the model does not fit `arch` or `like`, its values do not fit the dtypes
            of `like`, or `arch_kwargs` or `adapted` hold what JSON cannot.
    """
    path = Path(path)
    check_outputs([path], inputs=[like.path] if like else [], force=force)
    if like is None:
        header, state_dict = _new_header(model, arch, arch_kwargs, classes, transform)
        if style is not None:
            header["style"] = {"mean": style.mean.tolist(), "std": style.std.tolist()}
    else:
        header, state_dict = like.header, _changed(like, model)
        adapted = adapted or {
            "source": like.path.name,
            "sha256": like.sha256,
            "adaptkit": __version__,
        }
    if adapted:
        header = {**header, "adapted": _as_json("adapted", adapted)}
    write_files({path: _serialised(path, header, state_dict)})
    return path


def checkpoint_bytes(
    path: Path,
    model: nn.Module,
    *,
    like: Checkpoint,
    adapted: Mapping[str, Any],
    transform: Transform | None = None,
) -> bytes:
    """Return what `save_checkpoint` would write to `path`, for writing with other files at once.

    `transform` is one to record in place of that of `like`.
    """
    header = {**like.header, "adapted": _as_json("adapted", adapted)}
    if transform is not None:
        header["transform"] = transform.to_dict()
    return _serialised(path, header, _changed(like, model))


# Reading.


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint {path}")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file: give a .pt, .pth or .safetensors file")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if not content:
        raise CheckpointError(f"{path} is empty")
    return content


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return everything but the tensors, and the tensors."""
    try:
        if content[8:9] == b"{":  # after the header's length, safetensors begins its JSON
            tensors = safetensors.torch.load(content)
            text = content[8 : 8 + int.from_bytes(content[:8], "little")]
            metadata = json.loads(text).get("__metadata__", {})
            header = json.loads(metadata.pop("adaptkit", "{}"))
            loaded = {**header, "state_dict": tensors}
            keep = {_METADATA: metadata}
        else:
            with warnings.catch_warnings():  # of torch's, on files that it then refuses
                warnings.simplefilter("ignore")
                loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            keep = {}
    except Exception as error:  # noqa: BLE001  a broken file makes the readers raise anything
        raise CheckpointError(f"{path} {_why_unreadable(error, content)}") from None
    if isinstance(loaded, dict) and (keep or not isinstance(loaded.get("format"), Tensor | None)):
        _check_header(path, loaded)
        state_dict = loaded["state_dict"]
        header = {k: v for k, v in loaded.items() if k not in ("state_dict", _METADATA)} | keep
    elif isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        state_dict = loaded.pop("state_dict")
        header = _said(loaded)
        header[_TRAINING] = {k: v for k, v in loaded.items() if k not in header}
    else:
        state_dict = loaded
        header = _provenance(loaded)
    _check_tensors(path, state_dict)
    return header, state_dict


def _why_unreadable(error: Exception, content: bytes) -> str:
    advice = "with what wrote it, save model.state_dict() instead"
    text = str(error)
    if "TorchScript" in text:
        return f"is a TorchScript program, which holds code: {advice}"
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL ([\w.]+) ", text)
        # Any text may be taken for a pickle of protocol 0, which begins with no mark.
        if not refused and not content.startswith((b"PK\x03\x04", b"\x80")):
            return f"is broken or not a checkpoint: it begins with {content[:16]!r}"
        named = f" ({refused[1]})" if refused else ""
        return f"holds more than tensors{named}, and opening it could run code: {advice}"
    reason = next((line for line in text.split("\n") if line.strip()), type(error).__name__)
    return f"is broken or not a checkpoint: {reason.strip()[:160]}"


def _check_header(path: Path, loaded: dict[str, Any]) -> None:
    """Hold everything but the tensors to format adaptkit/1."""
    kind = loaded.get("format")
    if kind != FORMAT and "format" in loaded:
        if isinstance(kind, str) and re.fullmatch(r"adaptkit/\d+", kind):
            raise CheckpointError(
                f"{path} is of format {kind}, and this adaptkit ({__version__}) reads {FORMAT}: "
                f"install a newer adaptkit"
            )
        raise CheckpointError(
            f"{path} is of an unknown format {shown(repr(kind))}; expected {FORMAT}"
        )
    if "state_dict" not in loaded:
        raise CheckpointError(f"{path}: expected a field 'state_dict', got {few(list(loaded))}")
    expected: dict[str, tuple[type, ...]] = {
        "arch": (str,),
        "arch_kwargs": (dict,),
        "classes": (list, tuple),
        "transform": (dict,),
        "adapted": (dict,),
        "style": (dict,),
    }
    for name, types in expected.items():
        value = loaded.get(name)
        if value is not None and not isinstance(value, types):
            raise CheckpointError(
                f"{path}: expected '{name}' to be a {types[0].__name__}, got {type(value).__name__}"
            )
    if not all(isinstance(name, str) for name in loaded.get("classes") or ()):
        raise CheckpointError(f"{path}: expected 'classes' to be a list of names")
    _check_style(path, loaded.get("style"))


def _check_style(path: Path, style: Any) -> None:
    if style is None:
        return
    try:
        Style(*(torch.tensor(style[name], dtype=torch.float32) for name in ("mean", "std")))
    except (KeyError, TypeError, ValueError, RuntimeError, AdaptkitError):
        raise CheckpointError(
            f"{path}: expected 'style' to hold 'mean' and 'std', a number for each channel"
        ) from None


def _provenance(loaded: Any) -> dict[str, Any]:
    """Return what an adapted plain state dict says of itself, where torch keeps its metadata."""
    metadata = getattr(loaded, "_metadata", None)
    record = metadata.get("adaptkit") if isinstance(metadata, dict) else None
    if not isinstance(record, dict):
        return {}
    return _said({"adapted": {k: v for k, v in record.items() if k != "transform"}, **record})


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that adapting adds to a file; a transform of others' is not ours."""
    adapted, transform = record.get("adapted"), record.get("transform")
    if not isinstance(adapted, dict):
        return {}
    restyled = adapted.get("method") == "adain" and isinstance(transform, dict)
    return {"adapted": adapted, "transform": transform} if restyled else {"adapted": adapted}


def _check_tensors(path: Path, state_dict: Any) -> None:
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"{path} holds a {type(state_dict).__name__}, not a state dict")
    if not state_dict:
        raise CheckpointError(f"{path} holds an empty state dict")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is neither of format {FORMAT} nor a plain state dict of tensors "
                f"(its keys: {few(list(state_dict), 8)}): save model.state_dict() by itself"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{path}: '{shown(key)}' is a sparse, quantised or complex tensor, "
                f"expected real numbers: save the model before it was converted"
            )


def _transform(path: Path, fields: dict[str, Any]) -> Transform:
    try:
        return Transform.from_dict(fields)
    except (AdaptkitError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _without_prefix(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that the model has for them, in the same order."""
    if not all(key.startswith(_PARALLEL) for key in found):
        return found
    return {key.removeprefix(_PARALLEL): value for key, value in found.items()}


def _unused(model: nn.Module, found: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of a file of torch 0.3 for what InstanceNorm stored then without using it.

    That such a file is older than torch 0.4.1 shows in its having no `num_batches_tracked`. In a
    later one these keys are of an InstanceNorm that uses them, and do not fit one that does not.
    """
    if any(key.endswith("num_batches_tracked") for key in found):
        return set()
    return set(found) & {
        f"{name}.{buffer}"
        for name in norms.without_statistics(model)
        if isinstance(model.get_submodule(name), _InstanceNorm)
        for buffer in ("running_mean", "running_var")
    }


def _load_weights(path: Path, spec: str, model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Load strictly, but for what old files lack or add, none of which inference uses."""
    own = model.state_dict()
    unused = _unused(model, found)
    found = {k: v for k, v in found.items() if k not in unused} if unused else found
    misfits = {
        "missing": [k for k in own if k not in found and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in found if k not in own],
        "of another shape": [
            f"{shown(k)} {tuple(found[k].shape)} for {tuple(own[k].shape)}"
            for k in found
            if k in own and found[k].shape != own[k].shape
        ],
    }
    if any(misfits.values()):
        said = "; ".join(f"{len(v)} {name} ({few(v)})" for name, v in misfits.items() if v)
        raise CheckpointError(f"{path} does not fit {spec}: {said}")
    # The keys fit the modules as they are, of whatever versions the file says or does not say.
    current: Any = OrderedDict(found)
    current._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(current, strict=False)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise CheckpointError(f"{path} cannot be loaded into {spec}: {reason}") from None


def _check_statistics(path: Path, model: nn.Module) -> None:
    for name, layer in norms.norm_layers(model).items():
        stored = norms.read(layer)
        finite = bool(stored.mean.isfinite().all() and stored.variance.isfinite().all())
        if not finite or bool((stored.variance < 0).any()):
            what = "a negative variance" if finite else "NaN or infinity"
            raise CheckpointError(f"{path}: the statistics of norm layer '{name}' hold {what}")


# Writing.


def _new_header(
    model: nn.Module,
    arch: str | None,
    arch_kwargs: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
    transform: Transform | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if arch is None:
        raise CheckpointError("to save a checkpoint, give arch= or like=")
    state_dict = _plain(norms.unwrap(model).state_dict())
    fresh = build(arch, arch_kwargs, state_dict)
    _load_weights(Path("the model"), arch, fresh, state_dict)
    return {
        "format": FORMAT,
        "arch": arch,
        "arch_kwargs": _as_json("arch_kwargs", arch_kwargs or {}),
        "classes": None if classes is None else [str(name) for name in classes],
        "transform": None if transform is None else transform.to_dict(),
    }, state_dict


def _changed(like: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Take over the source's tensors, and of the model's those that differ, in the stored dtype."""
    model = norms.unwrap(model)
    current = model.state_dict()
    merged = copy.copy(like.state_dict)  # with the attribute in which torch keeps versions
    named = _without_prefix(like.state_dict)
    unused = _unused(model, named)
    for key, name in zip(like.state_dict, named, strict=True):
        if name in unused:
            continue
        stored, new = like.state_dict[key], current.get(name)
        if new is None or new.shape != stored.shape:
            raise CheckpointError(f"the model is not of {like.path}'s form: '{key}' does not fit")
        new = new.detach().cpu()
        if _equal(new, stored.to(new.dtype)):
            continue
        merged[key] = new.to(stored.dtype)
        if new.isfinite().all() and not merged[key].isfinite().all():
            raise CheckpointError(
                f"'{key}' of the model holds values too large for the {stored.dtype} of "
                f"{like.path}: convert that file to float32 or bfloat16 first"
            )
    return merged


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all values are the same, NaN being the same as NaN."""
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    )


def _as_json(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in what JSON can hold, which every kind of file can and any reader reads."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(record)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected {name} to be what JSON can hold: {error}") from None
    return copied


def _plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in state_dict.items()}


def _serialised(path: Path, header: Mapping[str, Any], state_dict: dict[str, Tensor]) -> bytes:
    if path.suffix not in SUFFIXES:
        raise OutputError(f"Expected a name ending in {', '.join(SUFFIXES)}, got {path}")
    header = dict(header)
    metadata = header.pop(_METADATA, {})
    if path.suffix == ".safetensors":
        try:
            record = json.dumps(header)
        except (TypeError, ValueError) as error:
            raise OutputError(
                f"cannot write {path}: beside tensors a .safetensors file holds only JSON "
                f"({shown(str(error))}): choose a name ending in .pt"
            ) from None
        tensors = {k: v.clone().contiguous() for k, v in state_dict.items()}  # no shared memory
        return safetensors.torch.save(tensors, {"format": "pt", **metadata, "adaptkit": record})
    beside = {} if "format" in header else header.pop(_TRAINING, None)
    content: Any = {**(beside or {}), **header, "state_dict": state_dict}
    if beside is None:
        content = OrderedDict(state_dict)
        content._metadata = OrderedDict(getattr(state_dict, "_metadata", {}))
        if header.get("adapted"):
            restyled = {k: header[k] for k in ("transform",) if k in header}
            content._metadata["adaptkit"] = {**header["adapted"], **restyled}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
