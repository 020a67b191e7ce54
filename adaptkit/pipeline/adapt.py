"""The main job from files to files; composition only."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from adaptkit.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint
from adaptkit.data import ImageLoader
from adaptkit.device import resolve_device
from adaptkit.errors import DataError, EstimationError
from adaptkit.estimation import Certificate, Statistics, estimate
from adaptkit.estimation import certify as certified
from adaptkit.estimation.precision import Precision
from adaptkit.estimation.statistics import as_fields
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.files import check_outputs, write_files
from adaptkit.norms import norm_layers, why_nothing_to_adapt
from adaptkit.pipeline.common import (
    Clock,
    Outputs,
    Progress,
    open_images,
    record,
    refuse_too_many_bad,
    versions,
)
from adaptkit.pipeline.shift import SAMPLES, against_source, drawn
from adaptkit.quality import confusion
from adaptkit.report import Report, Row, compare, verdict


@dataclass(frozen=True)
class Run:
    """What one run of the main job did."""

    report: Report
    outputs: Outputs
    statistics: Statistics
    images: int
    skipped: dict[str, str]
    notes: tuple[str, ...]
    written: tuple[Path, ...]
    moved: str  # how far the domain moved, in words


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
    holdout: float = 0,
    source_data: str | Path | None = None,
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
        holdout: the share of the images, drawn at random, that are scored but not adapted to; 0
            scores all images, those that were adapted to included.
        source_data: images of the domain that the model was trained on, to compare with.
        seed: decides which images are drawn.
        force: replace outputs that exist.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the folder or the outputs; nothing has
            been written then.
    """
    arguments = {k: v for k, v in locals().items() if k != "progress"}
    clock = Clock()
    outputs = Outputs.of(
        Path(source), Path(out) if out else None, Path(report) if report else None, pack=stats_only
    )
    check_outputs(
        (outputs.checkpoint, outputs.csv, outputs.json, outputs.confusion),
        inputs=[Path(source)],
        force=force,
    )
    if not 0 <= holdout < 1:
        raise DataError(f"Expected holdout to be 0 or more and below 1, got {holdout}")
    where = resolve_device(device)
    with clock.stage("load"):
        checkpoint = load_checkpoint(source, arch=arch)
        model = checkpoint.model.to(where)
        if not norm_layers(model):
            raise EstimationError(
                f"{source} ({checkpoint.arch}) has no layer with data-set statistics to adapt: "
                f"{why_nothing_to_adapt(model)}"
            )
        loader = open_images(checkpoint, Path(target), batch_size, workers)
        of_source = source_data and open_images(checkpoint, Path(source_data), batch_size, workers)
    total = len(loader.listing.paths)
    to_adapt, to_score = _parts(loader, holdout, seed)

    def evaluated(stage: str, net: torch.nn.Module) -> Evaluation:
        with clock.stage(stage):
            return evaluate(
                net, to_score, progress=progress and (lambda _, n, __: progress(stage, n, total))
            )

    before = evaluated("before", model)
    refuse_too_many_bad(to_score, skip_bad)
    with clock.stage("estimate"):
        statistics = estimate(
            model,
            to_adapt,
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
    refuse_too_many_bad(loader, skip_bad)
    after = evaluated("after", adapted)
    certificate = None
    if certify:
        with clock.stage("certify"):
            certificate = certified(
                adapted, to_adapt, samples=statistics.samples, layers=layers, seed=seed
            )

    found = compare(
        before,
        after,
        statistics=statistics,
        classes=loader.listing.classes or checkpoint.classes,
        seed=seed,
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
    notes = [*_notes(loader, statistics)]
    if of_source:
        with clock.stage("source"):
            added = against_source(
                model,
                adapted,
                drawn(of_source, SAMPLES, seed),
                drawn(to_score, SAMPLES, seed),
                None,
                seed,
                progress,
            )
        refuse_too_many_bad(of_source, skip_bad)
        found = replace(found, rows=(*found.rows, *added.rows))
        notes += added.notes
    files = {
        outputs.checkpoint: applied.to_bytes(base=checkpoint.fingerprint())
        if stats_only
        else checkpoint_bytes(
            outputs.checkpoint,
            adapted,
            like=checkpoint,
            adapted=record(checkpoint, applied, seed),
        ),
        outputs.csv: (found.to_csv() or "").encode(),
        outputs.json: (found.to_json() or "").encode(),
    }
    if before.labels is not None:
        names = dict(enumerate(loader.listing.classes or checkpoint.classes or ()))
        table = confusion(before, after, names)
        files[outputs.confusion] = table.to_csv(index=False, lineterminator="\n").encode()
    write_files(files)
    return Run(
        report=found,
        outputs=outputs,
        statistics=statistics,
        images=total,
        skipped=dict(loader.skipped),
        notes=tuple(notes),
        written=tuple(files),
        moved=verdict(found, statistics),
    )


def _parts(loader: ImageLoader, holdout: float, seed: int) -> tuple[ImageLoader, ImageLoader]:
    """Return what to adapt to and what to score: the same, or two parts drawn at random."""
    if not holdout:
        return loader, loader
    n = len(loader.listing.paths)
    kept = min(max(round(holdout * n), 1), n - 1)
    if n < 2:
        raise DataError(f"Expected two images or more to hold some out, got {n}")
    # In another order than the one that the statistics' sample is drawn in.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    return loader.subset(sorted(order[kept:])), loader.subset(sorted(order[:kept]))


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


def _details(
    arguments: dict[str, Any],
    checkpoint: Checkpoint,
    where: torch.device,
    loader: ImageLoader,
    statistics: Statistics,
    before: Evaluation,
    after: Evaluation,
    clock: Clock,
    certificate: Certificate | None,
) -> dict[str, Any]:
    """Return what the JSON file says beside the rows."""
    return {
        "versions": versions(),
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
        "transductive": None
        if arguments["holdout"]
        else "the images that were scored include those that were adapted to",
        "accuracy_interval": {
            "before": before.accuracy_interval,
            "after": after.accuracy_interval,
        },
        "skipped": dict(loader.skipped),
        "seconds": clock.seconds,
        "guard": None,
    }
