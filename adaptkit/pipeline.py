"""The main job from files to files; composition only."""

import copy
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from adaptkit import __version__
from adaptkit.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint
from adaptkit.data import ImageLoader, image_folder
from adaptkit.device import resolve_device
from adaptkit.errors import CheckpointError, DataError, EstimationError, OutputError
from adaptkit.estimation import Certificate, Statistics, estimate
from adaptkit.estimation import certify as certified
from adaptkit.estimation.precision import Precision
from adaptkit.estimation.statistics import as_fields
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.files import check_outputs, write_files
from adaptkit.norms import norm_layers, why_nothing_to_adapt
from adaptkit.report import Report, Row, compare

Progress = Callable[[str, int, int | None], None]

MOST_BAD = 0.1  # of all images, before a run is stopped
SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Outputs:
    """Where the three results of a run go; `checkpoint` is a domain pack with `--stats-only`."""

    checkpoint: Path
    csv: Path
    json: Path

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
        default = f"{source.stem}-statistics{suffixes[0]}" if pack else _adapted_name(source)
        checkpoint = out or Path(default)
        if checkpoint.suffix not in suffixes:
            raise OutputError(
                f"Expected an output ending in {', '.join(suffixes)}, got {checkpoint}: give --out"
            )
        csv = report or checkpoint.with_suffix(".csv")
        if csv.suffix != ".csv":
            raise OutputError(f"Expected a report ending in .csv, got {csv}")
        return cls(checkpoint, csv, csv.with_suffix(".json"))


def _adapted_name(source: Path) -> str:
    return f"{source.stem}-adapted{source.suffix}"


@dataclass(frozen=True)
class Run:
    """What one run of the main job did."""

    report: Report
    outputs: Outputs
    statistics: Statistics
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
    mode: Literal["exact", "stream"] = "exact",
    samples: int | Literal["all"] | None = None,
    tolerance: float | None = None,
    memory: int | None = None,
    precision: Precision = "auto",
    layers: Sequence[str] | None = None,
    prior: float = 0,
    stats_only: bool = False,
    certify: bool = False,
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
        mode: as for `estimate`, like the next five.
        samples: how many images the statistics are taken from at most, or "all".
        tolerance: as many as it takes for this standard error.
        memory: bytes that waiting activations may take.
        precision: of the estimation's forward passes.
        layers: names or globs of the layers to adapt.
        prior: how many images the source's statistics count for.
        stats_only: write a domain pack (see `Statistics.save`) instead of a checkpoint.
        certify: report how far the adapted model is from seeing what it stores.
        seed: decides which images are drawn.
        force: replace outputs that exist.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the folder or the outputs; nothing has
            been written then.
    """
    arguments = {k: v for k, v in locals().items() if k != "progress"}
    clock = _Clock()
    outputs = Outputs.of(
        Path(source), Path(out) if out else None, Path(report) if report else None, pack=stats_only
    )
    check_outputs(
        (outputs.checkpoint, outputs.csv, outputs.json), inputs=[Path(source)], force=force
    )
    where = resolve_device(device)
    with clock.stage("load"):
        checkpoint = load_checkpoint(source, arch=arch)
        model = checkpoint.model.to(where)
        if not norm_layers(model):
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
        statistics = estimate(
            model,
            loader,
            mode=mode,
            samples=samples,
            tolerance=tolerance,
            memory=memory,
            layers=layers,
            precision=precision,
            seed=seed,
            progress=progress,
        )
        applied = statistics.blend(model, prior=prior) if prior else statistics
        adapted = applied.apply(copy.deepcopy(model))
    after = evaluated("after", adapted)
    certificate = None
    if certify:
        with clock.stage("certify"):
            certificate = certified(
                adapted, loader, samples=statistics.samples, layers=layers, seed=seed
            )

    found = compare(
        before,
        after,
        statistics=statistics,
        details=_details(
            {**arguments, "out": outputs.checkpoint, "report": outputs.csv},
            checkpoint,
            where,
            loader,
            statistics,
            before,
            after,
            clock,
            certificate,
        ),
    )
    if certificate:
        worst = Row("certificate", "all", None, certificate.worst, None, n=statistics.samples)
        found = replace(found, rows=(*found.rows, worst))
    record = _record(checkpoint, applied, seed)
    written = (
        applied.to_bytes(base=checkpoint.fingerprint())
        if stats_only
        else checkpoint_bytes(outputs.checkpoint, adapted, like=checkpoint, adapted=record)
    )
    write_files(
        {
            outputs.checkpoint: written,
            outputs.csv: (found.to_csv() or "").encode(),
            outputs.json: (found.to_json() or "").encode(),
        }
    )
    return Run(
        report=found,
        outputs=outputs,
        statistics=statistics,
        images=total,
        skipped=dict(loader.skipped),
        notes=tuple(_notes(loader, statistics)),
    )


def apply_statistics(
    source: str | Path,
    statistics: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    force: bool = False,
) -> Statistics:
    """Give a checkpoint the statistics of a domain pack, and write the adapted checkpoint.

    Raises:
        AdaptkitError: a file is missing or broken, the pack belongs to another model, or `out`
            cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in SUFFIXES:
        raise OutputError(f"Expected an output ending in {', '.join(SUFFIXES)}, got {out}")
    check_outputs([out], inputs=[source, Path(statistics)], force=force)
    pack = Statistics.load(statistics)
    checkpoint = load_checkpoint(source, arch=arch)
    if pack.base not in (None, checkpoint.fingerprint()):
        raise CheckpointError(
            f"{statistics} was made for another model than {source}: a layer's statistics mean "
            f"nothing under other weights"
        )
    adapted = pack.apply(copy.deepcopy(checkpoint.model))
    record = _record(checkpoint, pack, None) | {"statistics": Path(statistics).name}
    write_files({out: checkpoint_bytes(out, adapted, like=checkpoint, adapted=record)})
    return pack


def _record(checkpoint: Checkpoint, statistics: Statistics, seed: int | None) -> dict[str, Any]:
    """Return what an adapted file says of where it comes from."""
    return {
        "source": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "samples": statistics.samples,
        "method": "adabn",
        "mode": statistics.mode,
        "seed": seed,
        "adaptkit": __version__,
    }


def _notes(loader: ImageLoader, statistics: Statistics) -> Iterator[str]:
    if loader.listing.note:
        yield loader.listing.note
    if statistics.limited:
        yield (
            f"memory allowed {statistics.samples:,} images for the statistics; more need "
            f"--memory, or --mode stream."
        )
    if statistics.mode == "stream":
        yield "streamed statistics are an approximation."
    if statistics.unvisited:
        yield f"no image passed {', '.join(statistics.unvisited)}, left as they were."


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
    certificate: Certificate | None,
) -> dict[str, Any]:
    """Return what the JSON file says beside the rows."""
    return {
        "versions": {
            "adaptkit": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "scikit-learn", "pandas")},
        },
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
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
        },
        "statistics": as_fields(statistics),
        "certificate": certificate
        and {
            "worst": certificate.worst,
            "mean": certificate.mean,
            "log_variance": certificate.log_variance,
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
