"""The tensors of a program: where in the archive each lies, and how to read and overwrite it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from adaptkit.errors import CheckpointError, shown
from adaptkit.exact import same_values
from adaptkit.program.archive import Archive

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}  # by the numbers that torch.export has for them
_STRIDED = 7
_DEEPEST = 64  # modules within modules


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which record, from which element on, in which steps."""

    record: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes by itself."""
        return prod(self.shape) * self.dtype.itemsize

    def of(self, payload: bytearray) -> Tensor:
        """Return the tensor in its record's bytes, which it shares."""
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        count = len(payload) // self.dtype.itemsize
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if prod(self.shape) > count or self.offset + last >= count:
            raise CheckpointError(
                f"is broken: '{self.record}' is smaller than the tensor of shape "
                f"{shown(self.shape)} that it should hold, or holds repeated values"
            )
        whole = torch.frombuffer(payload, dtype=self.dtype, count=count)
        if self.dtype == torch.bool and whole.view(torch.uint8).max() > 1:
            raise CheckpointError(f"is broken: '{self.record}' holds truth values above 1")
        return whole.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Entry:
    """A parameter, buffer or constant; of those that share memory, `place` is the same."""

    place: Place
    is_parameter: bool
    requires_grad: bool
    persistent: bool


def entries(archive: Archive, size: int) -> dict[str, Entry]:
    """Return the entries by name: parameters and persistent buffers, then all others.

    Args:
        archive: of the program.
        size: of the file, in bytes.

    Raises:
        CheckpointError: one is no plain tensor of real numbers, or all together are larger.
    """
    found: dict[str, Entry] = {}
    for folder in ("weights", "constants"):
        name = archive.only(rf"data/{folder}/[\w.-]+_config\.json")
        for key, said in json.loads(archive.read(name))["config"].items():
            if key in found:
                raise CheckpointError(f"is broken: it has two tensors '{shown(key)}'")
            if key.count(".") > _DEEPEST:
                raise CheckpointError(f"is broken: '{shown(key)}' is nested too deeply")
            found[key] = _entry(key, f"data/{folder}/", said)
    if sum(place.nbytes for place in {entry.place for entry in found.values()}) > size:
        raise CheckpointError("is broken: it is smaller than the tensors that it declares")
    return found


def hollow(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Return tensors of the same shapes and sharing without values or memory."""
    places = {entry.place for entry in entries.values()}
    found = {
        p: torch.empty_strided(p.shape, p.stride, dtype=p.dtype, device="meta") for p in places
    }
    return {name: found[entry.place] for name, entry in entries.items()}


def read(archive: Archive, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Return the tensors; what shares memory in the program shares it here."""
    payloads: dict[str, bytearray] = {}
    found: dict[Place, Tensor] = {}
    for place in (entry.place for entry in entries.values()):
        if place.record not in payloads:
            payloads[place.record] = bytearray(archive.read(place.record))
        if place not in found:
            found[place] = place.of(payloads[place.record])
    return {name: found[entry.place] for name, entry in entries.items()}


def overwritten(
    archive: Archive, entries: Mapping[str, Entry], changed: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """Return the records in which `changed` lie, with its values in their stored dtypes.

    Raises:
        CheckpointError: a tensor is not in the program, or of another shape, or shares memory with
            one that is to keep its values or to get others.
    """
    wanted: dict[Place, Tensor] = {}
    for name, new in changed.items():
        place = entries[name].place if name in entries else None
        if place is None or tuple(new.shape) != place.shape:
            raise CheckpointError(f"the model is not of the program's form: '{name}' does not fit")
        value = new.detach().cpu().to(place.dtype)
        if not same_values(wanted.setdefault(place, value), value):
            raise _shared(name)
    payloads = {place.record: bytearray(archive.read(place.record)) for place in wanted}
    beside = {name: e.place for name, e in entries.items() if e.place.record in payloads}
    before = {p: p.of(payloads[p.record]).clone() for p in beside.values()}
    for place, value in wanted.items():
        place.of(payloads[place.record]).copy_(value)
    for name, place in beside.items():
        if not same_values(place.of(payloads[place.record]), wanted.get(place, before[place])):
            raise _shared(name)
    return {record: bytes(payload) for record, payload in payloads.items()}


def _entry(key: str, folder: str, said: Mapping[str, Any]) -> Entry:
    meta, record = said["tensor_meta"], said["path_name"]
    if said["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", record):
        raise CheckpointError(
            f"holds '{shown(key)}' as an object of another class than a tensor, and opening it "
            f"could run code: save a program of plain tensors"
        )
    if meta["dtype"] not in DTYPES or meta["layout"] != _STRIDED:
        raise CheckpointError(
            f"holds '{shown(key)}' as a sparse, quantised or complex tensor, expected real numbers"
        )
    place = Place(
        folder + record,
        DTYPES[meta["dtype"]],
        tuple(map(_number, meta["sizes"])),
        tuple(map(_number, meta["strides"])),
        _number(meta["storage_offset"]),
    )
    trains = bool(meta["requires_grad"]) and place.dtype.is_floating_point
    return Entry(place, bool(said["is_param"]), trains, folder == "data/weights/")


def _number(said: Mapping[str, Any]) -> int:
    number = said["as_int"]
    if type(number) is not int or not 0 <= number < 2**48:
        raise CheckpointError(f"is broken: expected a size, got {shown(number)}")
    return number


def _shared(name: str) -> CheckpointError:
    return CheckpointError(
        f"'{shown(name)}' shares memory with a tensor that would get other values: export the "
        f"program from a model whose layers have statistics of their own"
    )
