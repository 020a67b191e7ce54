"""A streaming pass that was stopped goes on: what it has found is in a file."""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptkit import __version__
from adaptkit.distributed import World, world
from adaptkit.distributed.likeness import likeness
from adaptkit.errors import OutputError
from adaptkit.estimation.place import Place, Track, check_enterable
from adaptkit.files import check_outputs, remove_file
from adaptkit.moments import Moments
from adaptkit.partial import read_partial, write_partial

SECONDS_APART = 10.0  # of two writes, each of a few megabytes that are flushed to disk


class Resume:
    """The file in which a streaming pass writes down how far it is, and from which it goes on.

    For who has to save what comes of the pass before the file may go; given to `estimate` as a path
    it goes when that returns.

    Args:
        path: of the file; in a job of several processes the first one's, and that of rank r has
            ``.r`` at its end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.went_on = 0  # how many samples a pass had behind it when it went on

    def own(self) -> Path:
        """Return the file of this process."""
        rank = world().rank
        return self.path.with_name(f"{self.path.name}.{rank}") if rank else self.path

    def files(self) -> list[Path]:
        """Return the files that are there, of any process."""
        ours = re.compile(re.escape(self.path.name) + r"(\.\d+)?")
        with suppress(OSError):
            return sorted(p for p in self.path.parent.iterdir() if ours.fullmatch(p.name))
        return []

    def remove(self) -> None:
        """Remove the files.

        Raises:
            OutputError: the system refused.
        """
        for path in {self.own(), *self.files()}:
            remove_file(path)


class _Held(NamedTuple):
    """What a pass has found in the samples that it has passed."""

    moments: dict[str, Moments]
    passed: int
    place: Place


class Ledger:
    """What a process has found in a streaming pass, in its file and in memory.

    Args:
        resume: names the file. The pass goes on from it, or begins where there is none.
        model: bare, on its device.
        loader: of this process's samples, in the order drawn; of data that has no names a few
            samples are read, to know it again.
        arguments: of `estimate`, those that decide about the result; functions go by their names.
        where: the device that the pass runs on.
        seed: of what the loader's workers draw.
        dropped: see `Track`.

    Raises:
        EstimationError: the loader cannot be entered in its middle.
        OutputError: the file cannot be read or written, or was made from something else.
    """

    def __init__(
        self,
        resume: Resume,
        model: nn.Module,
        loader: Iterable[Any],
        arguments: Mapping[str, Any],
        where: torch.device,
        seed: int,
        dropped: list[int],
    ) -> None:
        check_enterable(loader, seed)
        self.path = resume.own()
        check_outputs([self.path], force=True)
        self.made_from = _facts(model, loader, arguments, where)
        self.chunk = self.rows = 0  # samples that are held, and those of a micro-batch
        self._skipped: dict[str, str] = getattr(loader, "skipped", {})
        self.held = self._read(where) or _Held({}, 0, Place())
        self.track = Track(loader, seed, dropped, self.held.place)
        self._written, self._due = time.monotonic(), False

    def sized(self, together: World, chunk: int, rows: int) -> tuple[int, int]:
        """Return the samples of a chunk and of a micro-batch: those it began with, or else these.

        The chunk is the same in all processes.
        """
        begun = [known for known in together.gather(self.chunk) if known]
        self.chunk, self.rows = begun[0] if begun else chunk, self.rows or rows
        return self.chunk, self.rows

    def note(self, moments: Mapping[str, Moments], count: int) -> None:
        """Note what was found when `count` samples have passed, and if it is time, write it."""
        self.held = _Held(dict(moments), count, self.track.after(count - self.held.passed))
        self._due = True
        if time.monotonic() - self._written >= SECONDS_APART:
            self._write()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write what was noted last at the end of a block, however it ends."""
        try:
            yield
        except BaseException:
            with suppress(OutputError):  # the first error is the one to report
                self._write()
            raise
        self._write()

    def _write(self) -> None:
        if not self._due:
            return
        moments, passed, place = self.held
        state = {
            "passed": passed,
            "place": place,
            "chunk": self.chunk,
            "rows": self.rows,
            "skipped": dict(self._skipped),
            "layers": {k: (m.count, m.weight, m.samples, m.within) for k, m in moments.items()},
        }
        tensors = {
            name: torch.cat([m.mean[None], m.m2[None], m.scatter.flatten(0, 1)]).cpu()
            for name, m in moments.items()
        }
        write_partial(self.path, self.made_from, state, tensors)
        self._written, self._due = time.monotonic(), False

    def _read(self, where: torch.device) -> _Held | None:
        found = read_partial(self.path, self.made_from)
        if found is None:
            return None
        state, tensors = found
        on = torch.device("cpu") if where.type == "mps" else where  # as `Moments.of` has them
        self.chunk, self.rows = state["chunk"], state["rows"]
        self._skipped.update(state["skipped"])
        moments = {
            name: _moments(tensors[name].to(on), *of) for name, of in state["layers"].items()
        }
        return _Held(moments, state["passed"], Place(*state["place"]))


def _facts(
    model: nn.Module, loader: Iterable[Any], arguments: Mapping[str, Any], where: torch.device
) -> dict[str, Any]:
    """Return all that decides about what a pass finds, beside the machine."""
    together = world()
    return {
        "adaptkit": __version__,
        "torch": torch.__version__,
        "processes": together.size,
        "process": together.rank,
        "device": where.type,
        "autocast": str(torch.get_autocast_dtype(where.type))
        if torch.is_autocast_enabled(where.type)
        else None,
        **{name: _named(value) for name, value in arguments.items()},
        "checksum of the model": _checksum(model),
        "checksum of the data": _of_data(loader),
    }


def _named(value: Any) -> Any:
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return value


def _checksum(model: nn.Module) -> str:
    """Return a digest of all that a model holds, on whichever device."""
    digest = hashlib.sha256()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        # A copy, since FSDP frees the memory of parameters, and what numpy has seen is not freed.
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _of_data(loader: Any) -> str:
    if hasattr(loader, "fingerprint"):
        return str(loader.fingerprint())[:12]
    return likeness(loader, range(len(loader.dataset))).digest[:12]


def _moments(values: Tensor, count: int, weight: float, samples: int, within: bool) -> Moments:
    mean, m2, *scatter = values
    return Moments(
        count, weight, mean, m2, samples, torch.stack(scatter).view(3, 3, len(mean)), within
    )
