"""A file of how far some work is: tensors, a few words, and what they were made from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adaptkit.errors import OutputError, few, shown
from adaptkit.files import replace_file

FORMAT = "adaptkit-partial/1"


def write_partial(
    path: Path, made_from: Mapping[str, Any], state: Any, tensors: Mapping[str, Tensor]
) -> None:
    """Write how far some work is, in the place of what was there; whole, or not at all.

    Args:
        path: of the file, in safetensors' format.
        made_from: all that decides about the work's result; of JSON's types.
        state: of JSON's types.
        tensors: on the CPU.

    Raises:
        OutputError: the system refused.
    """
    text = json.dumps({"format": FORMAT, "made_from": dict(made_from), "state": state})
    header = {"adaptkit": text, "sha256": _digest(text, tensors)}
    replace_file(path, safetensors.torch.save(dict(tensors), header))


def read_partial(path: Path, made_from: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]] | None:
    """Return the state and the tensors of a file; None where there is none.

    Raises:
        OutputError: it is broken or another kind of file, or was made from something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.resume")
    ...     write_partial(path, {"seed": 0}, [7], {"mean": torch.zeros(2)})
    ...     read_partial(path, {"seed": 0})
    ([7], {'mean': tensor([0., 0.])})
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(content)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text = head["adaptkit"]
        found = json.loads(text)
        whole = found["format"] == FORMAT and head["sha256"] == _digest(text, tensors)
        theirs, state = dict(found["made_from"]), found["state"]
    except Exception:  # noqa: BLE001  a broken file makes the readers raise anything
        whole = False
    if not whole:
        raise OutputError(
            f"{path} is broken, or no file of a run that was stopped: remove it to begin anew"
        )
    _check_same(path, theirs, made_from)
    return state, tensors


def _check_same(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    ours = json.loads(json.dumps(dict(ours)))  # tuples are lists there
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names:
        more = "" if len(names) == 1 else f"; also {few(names[1:], 20)}"
        was, now = (_said(some.get(names[0])) for some in (theirs, ours))
        raise OutputError(
            f"{path} is of a run on something else ({names[0]} {was}, now {now}{more}): start it "
            f"as it was, or remove the file to begin anew"
        )


def _said(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value))


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
