"""What the commands' work has in common: outputs, opened folders, what a record says."""

import platform
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptkit import __version__
from adaptkit.checkpoint import SUFFIXES, Checkpoint, suffix_of
from adaptkit.data import ImageLoader, Place
from adaptkit.distributed import World, world
from adaptkit.errors import DataError, OutputError
from adaptkit.estimation import Statistics

Progress = Callable[[str, int, int | None], None]

MOST_BAD = 0.1  # of all images, before a run is stopped


@dataclass(frozen=True)
class Outputs:
    """Where a run's results go; `checkpoint` is a domain pack with `--stats-only`.

    The confusion matrix is written only where there are labels.
    """

    checkpoint: Path
    csv: Path
    json: Path
    html: Path
    confusion: Path

    @classmethod
    def of(
        cls, source: Path, out: Path | None, report: Path | None, *, pack: bool = False
    ) -> "Outputs":
        """Fill in the defaults: beside each other, named after the source, in the current folder.

        Raises:
            OutputError: a suffix is not one that can be written.

        >>> Outputs.of(Path("models/net.pt"), None, None).csv
        PosixPath('net-adapted.csv')
        """
        suffixes = (".safetensors",) if pack else SUFFIXES
        default = stem(source) + (f"-statistics{suffixes[0]}" if pack else _adapted_end(source))
        checkpoint = out or Path(default)
        if not checkpoint.name.endswith(suffixes):
            raise OutputError(
                f"Expected an output ending in {', '.join(suffixes)}, got {checkpoint}: give --out"
            )
        csv = report or checkpoint.with_name(f"{stem(checkpoint)}.csv")
        if csv.suffix != ".csv":
            raise OutputError(f"Expected a report ending in .csv, got {csv}")
        return cls(
            checkpoint,
            csv,
            csv.with_suffix(".json"),
            csv.with_suffix(".html"),
            csv.with_name(f"{csv.stem}-confusion.csv"),
        )


def stem(path: Path) -> str:
    """Return a checkpoint's name without what says its kind."""
    return path.name.removesuffix(suffix_of(path))


def _adapted_end(source: Path) -> str:
    return f"-adapted{suffix_of(source) if source.name.endswith(SUFFIXES) else '.pt'}"


@dataclass
class Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def versions() -> dict[str, str]:
    """Return the versions that a run's figures depend on."""
    return {
        "adaptkit": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "scikit-learn", "pandas")},
    }


def command_line(command: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the line that gives a command these arguments, without those that are the default.

    >>> command_line("adapt", {"source": "a b.pt", "layers": ("x", "y"), "seed": 0}, {"seed": 0})
    "adaptkit adapt --source 'a b.pt' --layers x --layers y"
    """
    words = ["adaptkit", command]
    for name, value in arguments.items():
        if value is None or value is False or (name in defaults and value == defaults[name]):
            continue
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(option)
            continue
        for text in _texts(name, value):
            words += [option, text]
    return shlex.join(words)


_OPTIONS = {"arch_kwargs": "arch_arg"}


def _texts(name: str, value: Any) -> list[str]:
    """Return what stands behind an option, once or as often as it is repeated."""
    if isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in value.items()]
    if name == "image_size":
        return ["x".join(map(str, value))]
    if name in ("mean", "std"):
        return [",".join(f"{v:g}" for v in value)]
    return list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]


def record(
    checkpoint: Checkpoint,
    statistics: Statistics | None,
    seed: int | None,
    *,
    method: str = "adabn",
    guard: str | None = None,
) -> dict[str, Any]:
    """Return what an adapted file says of where it comes from."""
    estimated = {} if statistics is None else {"samples": statistics.samples}
    mode = {} if statistics is None else {"mode": statistics.mode}
    return {
        "source": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        **estimated,
        "method": method,
        **mode,
        **({} if guard is None else {"guard": guard}),
        "seed": seed,
        "adaptkit": __version__,
    }


def agree(
    world: World,
    checkpoint: Checkpoint,
    arguments: Mapping[str, Any],
    loaders: Mapping[str, ImageLoader | Place | str | None],
) -> None:
    """Make sure that all processes of a job do the same: code, arguments, checkpoint, images.

    Raises:
        DistributedError: they do not; it names what differs.
    """
    if world.size == 1:
        return
    # Which the loaders and the checkpoint stand for, or which each process may have its own of.
    own = ("source", "target", "source_data", "model", "device", "workers", "batch_size", "memory")
    with world.united():
        facts: dict[str, Any] = {
            **versions(),
            **{name: _told(name, value) for name, value in arguments.items() if name not in own},
            "sha256 of the checkpoint": checkpoint.sha256[:12],
        }
    for name, loader in loaders.items():
        if isinstance(loader, ImageLoader):
            listing = loader.listing
            known = *loader.names(), *(listing.labels or ()), *(listing.weights or ())
            names = "\n".join(map(str, known)).encode("utf-8", "backslashreplace")
            facts[f"samples in {name}"] = len(listing)
            facts[f"sha256 of the names in {name}"] = sha256(names).hexdigest()[:12]
    world.agree(facts, "start all with the same code, arguments, checkpoint and images")


def _told(name: str, value: Any) -> str:
    """Return what tells an argument from another process's: of a file its content."""
    if name in ("class_shares", "classes") and isinstance(value, (str, Path)):
        path = Path(value)
        if path.is_file():
            return f"of sha256 {sha256(path.read_bytes()).hexdigest()[:12]}"
    return str(value)


def check_alike(source: ImageLoader, target: ImageLoader) -> None:
    """Raise DataError if source data is of another form than the target."""
    ready = (source.listing.shape is None) != (target.listing.shape is None)
    if ready or source.shape != target.shape:
        first, second = (
            f"{x.listing.source} ({x.listing.of} of {' x '.join(map(str, x.shape))})"
            for x in (source, target)
        )
        raise DataError(f"expected source data of the target's form, got {first} for {second}")


def refuse_too_many_bad(loader: ImageLoader, skip_bad: bool) -> None:
    """Raise DataError if more than a tenth of a loader's images could not be read.

    Call it when the loader has been read through, in all processes of a job. What was skipped then
    stands in the order of the listing, whoever has read it.
    """
    every = {path: why for theirs in world().gather(loader.skipped) for path, why in theirs.items()}
    if every:
        places = {path.as_posix(): place for place, path in enumerate(loader.listing.paths)}
        loader.skipped.clear()
        loader.skipped.update(sorted(every.items(), key=lambda named: places.get(named[0], -1)))
    bad, total = loader.skipped, len(loader.dataset)  # type: ignore[arg-type]
    if len(bad) > MOST_BAD * total and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise DataError(
            f"{len(bad)} of {total} {loader.listing.of} cannot be read, the first being "
            f"{name} ({reason}): repair or remove them, or give --skip-bad"
        )
