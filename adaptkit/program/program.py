"""Programs of torch.export as models, and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptkit.errors import CheckpointError, shown
from adaptkit.program import checks, safety, tensors
from adaptkit.program.archive import Archive
from adaptkit.program.graph import read_graph
from adaptkit.program.interpreter import build

_RECORD = "extra/adaptkit.json"
_MODEL = r"models/[\w.-]+\.json"
_SAMPLES = r"data/sample_inputs/[\w.-]+\.pt"
_LONGEST = 2**28  # bytes of JSON


@dataclass(frozen=True)
class Program:
    """A program of torch.export.

    Args:
        model: runs the program's graph, in eval mode on the CPU. Its norm and linear layers are
            those of torch.nn, all under the names that they had. It computes in float32 where the
            program was exported in half or double precision.
        state_dict: its parameters and persistent buffers as stored, in memory of their own.
        input_shape: of the image tensor (N, C, H, W) that it takes, None for any size.
        record: what `program_bytes` stored in it, {} if nothing.
    """

    model: nn.Module
    state_dict: dict[str, Tensor]
    input_shape: tuple[int | None, ...]
    record: dict[str, Any]


def read_program(path: Path, content: bytes) -> Program:
    """Read a program. No code in the file runs, and torch.export.load is not asked.

    Args:
        path: for messages.
        content: the file's bytes.

    Raises:
        CheckpointError: it is broken or of an older torch, calls what may do harm, holds more than
            tensors, is in training mode, takes something else than one image tensor, or works for
            one number of images only.

    >>> import io, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> file = io.BytesIO()
    >>> torch.export.save(torch.export.export(net, (torch.zeros(2, 3, 8, 8),)), file)
    >>> program = read_program(Path("net.pt2"), file.getvalue())
    >>> program.input_shape, [name for name, _ in program.model.named_modules()]
    ((2, 3, 8, 8), ['', '0', '1'])
    """
    try:
        return _read(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except (Exception, RecursionError) as error:  # noqa: BLE001  what is broken raises anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is broken or no program that adaptkit reads: {shown(reason)}"
        ) from None


def program_bytes(
    content: bytes, changed: Mapping[str, Tensor], record: Mapping[str, Any]
) -> bytes:
    """Return a program's file with other values in some tensors, and all else as it is.

    Args:
        content: of the file that `read_program` read.
        changed: by name, of the stored shapes; they are stored in the dtypes that are there.
        record: what JSON can hold, for `Program.record`. torch.export.load gives it in
            extra_files, under "adaptkit.json".

    Raises:
        CheckpointError: a tensor is not in the program, or shares memory with one that is to keep
            its values.
    """
    archive = Archive(content)
    entries = tensors.entries(archive, len(content))
    records = tensors.overwritten(archive, entries, changed)
    return archive.with_records({**records, _RECORD: json.dumps(dict(record)).encode()})


def _read(content: bytes) -> Program:
    archive = Archive(content)
    text = archive.read(archive.only(_MODEL))
    if len(text) > _LONGEST:
        raise CheckpointError(f"has a graph of {len(text):,} bytes: it is no model's")
    entries = tensors.entries(archive, len(content))
    described = json.loads(text)
    safety.check(described, entries, archive.read(archive.only(_SAMPLES)))
    graph = read_graph(described, entries)
    model = build(graph, entries, tensors.read(archive, entries))
    checks.check(model, build(graph, entries, tensors.hollow(entries)), graph)
    stored = {k: v for k, v in entries.items() if v.persistent}
    return Program(model, tensors.read(archive, stored), graph.shape, _record(archive))


def _record(archive: Archive) -> dict[str, Any]:
    if _RECORD not in archive.names:
        return {}
    record = json.loads(archive.read(_RECORD))
    if not isinstance(record, dict):
        raise CheckpointError(f"is broken: expected an object in {_RECORD}, got {shown(record)}")
    return record
