"""The main job from files to files; composition only."""

import copy
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from adaptkit import __version__
from adaptkit.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint
from adaptkit.data import ImageLoader, image_folder
from adaptkit.device import resolve_device
from adaptkit.errors import CheckpointError, DataError, EstimationError, OutputError
from adaptkit.estimation import Statistics, estimate
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.files import check_outputs, write_files
from adaptkit.norms import norm_layers, why_nothing_to_adapt
from adaptkit.report import Report, compare

Progress = Callable[[str, int, int | None], None]

MOST_BAD = 0.1  # of all images, before a run is stopped
SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Outputs:
    """Where the three results of a run go."""

    checkpoint: Path
    csv: Path
    json: Path

    @classmethod
    def of(cls, source: Path, out: Path | None, report: Path | None) -> "Outputs":
        """Fill in the defaults: beside each other, named after the source, in the current folder.

        Raises:
            OutputError: a suffix is not one that can be written.

        >>> Outputs.of(Path("models/net.pt"), None, None).csv
        PosixPath('net-adapted.csv')
        """
        checkpoint = out or Path(f"{source.stem}-adapted{source.suffix}")
        if checkpoint.suffix not in SUFFIXES:
            raise OutputError(
                f"Expected an output ending in {', '.join(SUFFIXES)}, got {checkpoint}: give --out"
            )
        csv = report or checkpoint.with_suffix(".csv")
        if csv.suffix != ".csv":
            raise OutputError(f"Expected a report ending in .csv, got {csv}")
        return cls(checkpoint, csv, csv.with_suffix(".json"))


@dataclass(frozen=True)
class Run:
    """What one run of the main job did."""

    report: Report
    outputs: Outputs
    statistics: Statistics
    layers: int
    images: int
    skipped: dict[str, str]
    notes: tuple[str, ...]


@dataclass
class _Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def adapt_folder(
    source: str | Path,
    target: str | Path,
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
    arch: str | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    samples: int | Literal["all"] = 1024,
    seed: int = 0,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Adapt a checkpoint to a folder of images; write the adapted checkpoint and the report.

    Reads `source` and `target`, evaluates, estimates, evaluates again, and only then writes: all
    three files or none.

    Args:
        source: a checkpoint file; never written.
        target: class folders, or a flat or nested folder of unlabelled images.
        out: the adapted checkpoint; by default ``<source stem>-adapted<suffix>`` in the current
            folder.
        report: the CSV; by default beside `out`. The JSON lies beside the CSV.
        arch: overrides the architecture that the checkpoint names.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images a batch; it does not change the statistics.
        workers: processes that decode images; 0 decodes in this one.
        samples: how many images the statistics are taken from at most, or "all".
        seed: decides which.
        force: replace outputs that exist.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the folder or the outputs; nothing has
            been written then.
    """
    clock = _Clock()
    outputs = Outputs.of(Path(source), Path(out) if out else None, Path(report) if report else None)
    check_outputs(
        (outputs.checkpoint, outputs.csv, outputs.json), inputs=[Path(source)], force=force
    )
    where = resolve_device(device)
    with clock.stage("load"):
        checkpoint = load_checkpoint(source, arch=arch)
        model = checkpoint.model.to(where)
        layers = norm_layers(model)
        if not layers:
            raise EstimationError(
                f"{source} ({checkpoint.arch}) has no layer with data-set statistics to adapt: "
                f"{why_nothing_to_adapt(model)}"
            )
        loader = _open_target(checkpoint, Path(target), batch_size, workers)
    total = len(loader.listing.paths)

    def evaluated(stage: str, net: torch.nn.Module) -> Evaluation:
        with clock.stage(stage):
            return evaluate(
                net, loader, progress=progress and (lambda _, n, __: progress(stage, n, total))
            )

    before = evaluated("before", model)
    _refuse_too_many_bad(loader, skip_bad)
    with clock.stage("estimate"):
        statistics = estimate(model, loader, samples=samples, seed=seed, progress=progress)
        adapted = statistics.apply(copy.deepcopy(model))
    after = evaluated("after", adapted)

    record = {
        "source": Path(source).name,
        "sha256": checkpoint.sha256,
        "samples": statistics.samples,
        "method": "adabn",
        "seed": seed,
        "adaptkit": __version__,
    }
    arguments = {
        "source": str(source),
        "target": str(target),
        "out": str(outputs.checkpoint),
        "report": str(outputs.csv),
        "arch": arch,
        "device": device,
        "batch_size": batch_size,
        "workers": workers,
        "samples": samples,
        "seed": seed,
        "force": force,
        "skip_bad": skip_bad,
    }
    found = compare(
        before,
        after,
        target={name: after.layers[name] for name in statistics},
        details=_details(arguments, checkpoint, where, loader, statistics, before, after, clock),
    )
    write_files(
        {
            outputs.checkpoint: checkpoint_bytes(
                outputs.checkpoint, adapted, like=checkpoint, adapted=record
            ),
            outputs.csv: (found.to_csv() or "").encode(),
            outputs.json: (found.to_json() or "").encode(),
        }
    )
    return Run(
        report=found,
        outputs=outputs,
        statistics=statistics,
        layers=len(layers),
        images=total,
        skipped=dict(loader.skipped),
        notes=(loader.listing.note,) if loader.listing.note else (),
    )


def _open_target(
    checkpoint: Checkpoint, target: Path, batch_size: int, workers: int
) -> ImageLoader:
    if checkpoint.transform is None:
        raise CheckpointError(
            f"{checkpoint.path} does not say how images are prepared (size, channels, mean, std): "
            f"save it again with adaptkit.save_checkpoint(..., transform=adaptkit.Transform(...))"
        )
    height, width = checkpoint.transform.image_size
    where = next(checkpoint.model.parameters()).device
    with torch.no_grad():
        blank = torch.zeros(1, checkpoint.transform.channels, height, width, device=where)
        outputs = checkpoint.model(blank)
    return image_folder(
        target,
        transform=checkpoint.transform,
        classes=checkpoint.classes,
        outputs=outputs.shape[-1] if isinstance(outputs, torch.Tensor) else None,
        batch_size=batch_size,
        workers=workers,
    )


def _refuse_too_many_bad(loader: ImageLoader, skip_bad: bool) -> None:
    bad, total = loader.skipped, len(loader.listing.paths)
    if len(bad) > MOST_BAD * total and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise DataError(
            f"{len(bad)} of {total} images cannot be read, the first being {name} ({reason}): "
            f"repair or remove them, or give --skip-bad"
        )


def _details(
    arguments: dict[str, Any],
    checkpoint: Checkpoint,
    where: torch.device,
    loader: ImageLoader,
    statistics: Statistics,
    before: Evaluation,
    after: Evaluation,
    clock: _Clock,
) -> dict[str, Any]:
    """Return what the JSON file says beside the rows."""
    return {
        "versions": {
            "adaptkit": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "scikit-learn", "pandas")},
        },
        "arguments": arguments,
        "seed": arguments["seed"],
        "device": str(where),
        "method": "adabn",
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "arch": checkpoint.arch,
            "arch_kwargs": checkpoint.arch_kwargs,
            "adapted": checkpoint.adapted,
        },
        "layers": {"adapted": list(statistics), "unvisited": list(statistics.unvisited)},
        "samples": {
            "images": len(loader.listing.paths),
            "labelled": before.labels is not None,
            "evaluated": len(before),
            "estimated": statistics.samples,
            "random": statistics.random,
            "not_finite": statistics.dropped,
        },
        "transductive": "the images that were scored include those that were adapted to",
        "accuracy_interval": {
            "before": before.accuracy_interval,
            "after": after.accuracy_interval,
        },
        "skipped": dict(loader.skipped),
        "seconds": clock.seconds,
        "guard": None,
    }
