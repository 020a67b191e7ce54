"""From a file's bytes to its content and back; no code in the bytes runs."""

import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adaptkit.checkpoint import fields, inert, nesting
from adaptkit.checkpoint.content import FORMAT, STATE_DICT, Content, Kind, is_our_format
from adaptkit.errors import AdaptkitError, CheckpointError, OutputError, few, shown
from adaptkit.exact import is_packed

ZIP = b"PK\x03\x04"
_JSON_AFTER = 8  # bytes of a safetensors file that tell how long its header is
_MOST_TENSORS = 100_000
# What torch calls with numbers from the file, and they with any amount of memory.
_ALLOCATORS = re.compile(
    r"(builtins|__builtin__) bytearray|torch(\.\w+)* \w*Tensor|"
    r"torch\._utils _rebuild_(qtensor|nested_tensor|wrapper_subclass|device_tensor_from_numpy)"
)
# What no model needs, however it was pickled.
_ATTACKS = re.compile(
    r"(commands|nt|os|posix|pty|runpy|shutil|socket|subprocess|sys|webbrowser)(\.\w+)* \S*|"
    r"(builtins|__builtin__) (exec|eval|compile|open|__import__|execfile|apply)"
)


def is_safetensors(content: bytes) -> bool:
    """Whether a file is a safetensors one, by how it begins."""
    return content[_JSON_AFTER : _JSON_AFTER + 1] == b"{"


def parse(path: Path, content: bytes) -> Content:
    """Return what a file of torch's or of safetensors' holds.

    Args:
        path: for messages.
        content: the file's bytes.

    Raises:
        CheckpointError: it is broken, or would run code.
    """
    try:
        return _safetensors(path, content) if is_safetensors(content) else _torch(path, content)
    except AdaptkitError:
        raise
    except (Exception, RecursionError) as error:  # noqa: BLE001  readers raise anything
        raise CheckpointError(f"{path} {_why_unreadable(path, error, content)}") from None


def to_safetensors(path: Path, content: Content) -> bytes:
    """Return a content as a safetensors file, all but the tensors as JSON in its header.

    Args:
        path: for messages.
        content: of any kind.

    Raises:
        OutputError: JSON cannot hold all that it holds beside tensors.
    """
    record = check_header(path, content)
    tensors = {k: v.clone().contiguous() for k, v in content.state_dict.items()}  # not shared
    others = {k: v if isinstance(v, str) else json.dumps(v) for k, v in content.metadata.items()}
    return safetensors.torch.save(tensors, {"format": "pt", **others, "adaptkit": record})


def check_header(path: Path, content: Content) -> str:
    """Return all but the state dict as JSON.

    Raises:
        OutputError: JSON cannot hold it.
    """
    try:
        return json.dumps(content.header())
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(
            f"cannot write {path}: beside tensors a .safetensors file holds only JSON "
            f"({shown(str(error))}): choose a name ending in .pt"
        ) from None


def to_torch(content: Content) -> bytes:
    """Return a content as torch writes it, in the older of its formats if it came in that."""
    buffer = io.BytesIO()
    newer = content.kind != "legacy torch"
    torch.save(content.tree, buffer, _use_new_zipfile_serialization=newer)
    return buffer.getvalue()


def read_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Return the tensors, what others wrote into the header, and what we did.

    Raises:
        Exception: of many kinds, where the file is broken.
    """
    tensors = safetensors.torch.load(content)
    text = content[_JSON_AFTER : _JSON_AFTER + int.from_bytes(content[:_JSON_AFTER], "little")]
    metadata = dict(json.loads(text).get("__metadata__", {}))
    header = json.loads(metadata.pop("adaptkit", "{}"))
    if not isinstance(header, dict):
        raise TypeError(f"expected its header to hold an object, got {type(header).__name__}")
    return tensors, metadata, header


def with_header(
    path: Path,
    kind: Kind,
    header: Mapping[str, Any],
    tensors: dict[str, Tensor],
    metadata: Mapping[str, Any],
    origin: Any = None,
) -> Content:
    """Put together what a file holds apart: what we wrote into its header, and its tensors.

    Raises:
        CheckpointError: the header is not as we wrote it.
    """
    if "format" in header:
        fields.check(path, {**header, STATE_DICT: tensors})
    try:
        found = Content.of_header(kind, header, tensors, metadata, origin)
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path} is broken: what adaptkit wrote into it was changed"
        ) from None
    fields.check_types(path, found.fields)
    return found


def check_tensors(path: Path, state_dict: Any, size: int) -> None:
    """Refuse what is no state dict of real numbers, all of them in the file.

    Args:
        path: for messages.
        state_dict: found in the file.
        size: of the file, in bytes.

    Raises:
        CheckpointError: it is not.
    """
    if not isinstance(state_dict, dict):
        raise CheckpointError(f"{path} holds a {type(state_dict).__name__}, not a state dict")
    if not state_dict:
        raise CheckpointError(f"{path} holds an empty state dict")
    if len(state_dict) > _MOST_TENSORS:
        raise CheckpointError(f"{path} holds {len(state_dict):,} tensors: it is no model's")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is neither of format {FORMAT} nor a plain state dict of tensors, nor has "
                f"it one under state_dict, model, net, ema or such (its keys: "
                f"{few(list(state_dict), 8)}): save model.state_dict() by itself"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{path}: '{shown(key)}' is a sparse, quantised or complex tensor, "
                f"expected real numbers: save the model before it was converted"
            )
        if value.is_meta:
            raise CheckpointError(f"{path}: '{shown(key)}' has no values: it was saved on 'meta'")
        if prod(value.shape) * value.element_size() > size:  # numel() can overflow
            raise CheckpointError(
                f"{path}: '{shown(key)}' of shape {shown(tuple(value.shape))} holds repeated "
                f"values, more than the file has bytes: save the model before it was expanded"
            )
    storages = (value.untyped_storage() for value in state_dict.values())
    if sum({s.data_ptr(): s.nbytes() for s in storages}.values()) > size:
        raise CheckpointError(f"{path} is broken: it is smaller than the tensors that it declares")


def _safetensors(path: Path, content: bytes) -> Content:
    tensors, metadata, header = read_safetensors(content)
    return with_header(path, "safetensors", header, tensors, metadata)


def _torch(path: Path, content: bytes) -> Content:
    zipped = content.startswith(ZIP)
    _check_archive(path, content)
    with warnings.catch_warnings(), inert.allowed():
        warnings.simplefilter("ignore")  # of torch's, on files that it then refuses
        tree = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    where = _where(path, tree)
    return Content("torch" if zipped else "legacy torch", tree, where)


def _where(path: Path, tree: Any) -> nesting.Path:
    if isinstance(tree, dict) and is_our_format(tree.get("format")):
        fields.check(path, tree)
        return (STATE_DICT,)
    return next(iter(nesting.find(tree)), ())


def _check_archive(path: Path, content: bytes) -> None:
    """Refuse, before torch reads a file, what would take more memory than the file has bytes."""
    pickles = [content]
    if content.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise CheckpointError(f"{path} {_torchscript(path)}")
            if is_packed(archive, len(content)):
                raise CheckpointError(
                    f"{path} is broken or not a checkpoint: its records are compressed or overlap, "
                    f"as torch never writes them"
                )
            pickles = [archive.read(r) for r in records if r.filename.endswith("data.pkl")]
    for name in (name for each in pickles for name in _names(each)):
        if _ATTACKS.fullmatch(name):
            raise CheckpointError(
                f"{path} would run code ({shown(name.replace(' ', '.'))}), as no model needs to: "
                f"do not open it anywhere"
            )
        if _ALLOCATORS.fullmatch(name):
            raise pickle.UnpicklingError(f"GLOBAL {name.replace(' ', '.')} is refused")


def _torchscript(path: Path) -> str:
    return (
        f"is a TorchScript program, which PyTorch has deprecated and which holds code: from Python "
        f"source, export it anew with program = torch.export.export(model.eval(), (x,), "
        f"dynamic_shapes=({{0: torch.export.Dim.AUTO}},)) and torch.export.save(program, "
        f"'{path.stem}.pt2'); or, if you trust it, keep its weights with "
        f"torch.save(torch.jit.load('{path}').state_dict(), '{path.stem}-weights.pt')"
    )


def _names(pickled: bytes) -> Iterator[str]:
    """Yield the names, as "module name", of all that a pickle would call."""
    stream = io.BytesIO(pickled)
    texts = ["", ""]  # the last two, from which newer pickles make a name
    try:
        while stream.tell() < len(pickled):  # torch's older format is several pickles in a row
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "INST"):
                    yield str(argument)
                elif operation.name == "STACK_GLOBAL":
                    yield " ".join(texts)
                elif isinstance(argument, str):
                    texts = [texts[1], argument]
    except ValueError:  # here the pickles end, and in the older format the tensors begin
        return


def _why_unreadable(path: Path, error: Exception, content: bytes) -> str:
    text = str(error)
    if "TorchScript" in text:
        return _torchscript(path)
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL ([\w.]+) ", text)
        # Any text may be taken for a pickle of protocol 0, which begins with no mark.
        if not refused and not content.startswith((ZIP, b"\x80")):
            return f"is broken or not a checkpoint: it begins with {content[:16]!r}"
        named = f" ({refused[1]})" if refused else ""
        return (
            f"holds more than tensors{named}, and opening it could run code: with what wrote it, "
            f"or if you trust it, model = torch.load('{path}', weights_only=False) and "
            f"torch.save(model.state_dict(), '{path.stem}-weights.pt')"
        )
    reason = next((line for line in text.split("\n") if line.strip()), type(error).__name__)
    return f"is broken or not a checkpoint: {reason.strip()[:160]}"
