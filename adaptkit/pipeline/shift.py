"""How far a folder of images lies from what a model was trained on."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import Unpack

from adaptkit.batches import inputs_of
from adaptkit.data import ImageLoader, Place, place
from adaptkit.device import resolve_device
from adaptkit.distributed import world
from adaptkit.errors import AdaptkitError, DataError, EstimationError, OutputError
from adaptkit.estimation import estimate
from adaptkit.evaluation import Evaluation, evaluate
from adaptkit.features import POOLED, features
from adaptkit.files import check_outputs, write_files
from adaptkit.label_shift import (
    class_shares,
    difference_of_confidences,
    only_shares_moved,
    thresholded_confidence,
)
from adaptkit.norms import norm_layers, read, why_nothing_to_adapt
from adaptkit.pipeline.common import (
    Clock,
    Progress,
    agree,
    check_alike,
    refuse_too_many_bad,
    versions,
)
from adaptkit.pipeline.opening import (
    Head,
    Said,
    head_of,
    notes_on,
    open_checkpoint,
    open_samples,
    preparation,
    source_files,
    spelled_out,
)
from adaptkit.report import (
    Report,
    Row,
    feature_rows,
    figure_rows,
    input_rows,
    unknown_metrics,
    verdict,
)
from adaptkit.report.layers import error_rows, layer_rows, target_of
from adaptkit.shift.images import image_figures
from adaptkit.transform import Transform

SAMPLES = 1000  # images of each domain; pairwise metrics cost their square


@dataclass(frozen=True)
class ShiftRun:
    """What measuring a shift found."""

    report: Report
    csv: Path
    json: Path
    verdict: str
    notes: tuple[str, ...]
    skipped: dict[str, str]
    images: int


@dataclass(frozen=True)
class AgainstSource:
    """What source data adds to a report.

    Args:
        rows: of the report.
        notes: what has to be said in words.
        images: how many of the source.
        skipped: those that could not be read.
        features: of the source's images, of the target's before, and after.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    images: int
    skipped: dict[str, str]
    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def shift_folders(
    model: str | Path,
    target: str | Place,
    *,
    source_data: str | Place | None = None,
    layer: str | None = None,
    samples: int = SAMPLES,
    report: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    fast_jpeg: bool = False,
    seed: int = 0,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **said: Unpack[Said],
) -> ShiftRun:
    """Measure how far `target` lies from a model's own statistics and, if given, from source data.

    Writes a CSV and a JSON report; no model is written. "After" is the model with the target's
    statistics (plain AdaBN). In a job of several processes call it in each, as `adapt_folder`.

    Args:
        model: a checkpoint file.
        target: class folders, or a flat or nested folder of images; labels are not used.
        source_data: images of the domain that the model was trained on; with class folders the
            target's class shares and accuracy are estimated too.
        layer: whose features are compared, by default the pooled ones before the last linear layer.
        samples: how many images of each domain are compared at most, drawn at random.
        report: the CSV; by default ``<model stem>-shift.csv`` in the current folder.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images a batch.
        workers: processes that decode images; 0 decodes in this one.
        fast_jpeg: see `adaptkit.image_folder`.
        seed: decides which images are drawn, and everything else that is random.
        force: replace outputs that exist.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress(stage, done, total)``.
        said: what the checkpoint does not say or says otherwise: architecture, how images are
            prepared, names of classes (see `Said`).

    Raises:
        AdaptkitError: what is wrong with the checkpoint, a folder or the outputs; nothing has been
            written then.
    """
    target, source_data = place(target), place(source_data) if source_data else None
    arguments = {k: v for k, v in locals().items() if k not in ("progress", "said")}
    arguments |= spelled_out(said)
    arguments = {k: str(v) if isinstance(v, Place) else v for k, v in arguments.items()}
    clock = Clock()
    csv = Path(report) if report else Path(f"{Path(model).stem}-shift.csv")
    if csv.suffix != ".csv":
        raise OutputError(f"Expected a report ending in .csv, got {csv}")
    outputs = csv, csv.with_suffix(".json")
    inputs = [Path(model), *source_files(said)]
    together = world()
    with clock.stage("load"), together.united():
        if together.rank == 0:
            check_outputs(outputs, inputs=inputs, force=force)
        where = resolve_device(device)
        checkpoint = open_checkpoint(model, **said)
        net = checkpoint.model.to(where)
        if not norm_layers(net):
            raise EstimationError(
                f"{model} ({checkpoint.arch}) has no layer with data-set statistics: "
                f"{why_nothing_to_adapt(net)}"
            )
        head = head_of(checkpoint, target)
        every = open_samples(checkpoint, head, target, batch_size, workers, fast_jpeg)
        of_source = source_data and open_samples(checkpoint, head, source_data, batch_size, workers)
        if of_source:
            check_alike(of_source, every)
    agree(together, checkpoint, arguments, {"the target": every, "the source data": of_source})
    chosen = drawn(every, samples, seed)
    with clock.stage("estimate"), some_readable(chosen):
        statistics = estimate(net, chosen, samples="all", seed=seed, progress=progress)
    refuse_too_many_bad(chosen, skip_bad)
    adapted = statistics.apply(copy.deepcopy(net))
    own, new = ({n: read(m) for n, m in norm_layers(x).items()} for x in (net, adapted))
    rows = [*layer_rows(own, new, target_of(new, statistics)), *error_rows(statistics)]
    notes = notes_on(checkpoint, head)
    notes += [every.listing.note] if every.listing.note else []
    skipped, against = dict(every.skipped), None
    if of_source:
        part = drawn(of_source, samples, seed)
        with clock.stage("source"), some_readable(part):
            against = against_source(net, adapted, part, chosen, head, layer, seed, progress)
        refuse_too_many_bad(part, skip_bad)
        rows += against.rows
        notes += [note for note in against.notes if note not in notes]
        skipped |= against.skipped
    words = verdict(Report(tuple(rows)), statistics, every.listing.of)
    transform = checkpoint.transform
    found = Report(
        tuple(rows),
        {
            "versions": versions(),
            "arguments": arguments,
            "seed": seed,
            "device": str(where),
            "processes": together.size,
            "of": every.listing.of,
            "checkpoint": {"sha256": checkpoint.sha256, "arch": checkpoint.arch},
            "transform": transform and transform.to_dict(),
            "transform_from": checkpoint.transform_from,
            "prepared": preparation(checkpoint, every.listing.shape),
            "samples": {
                "target": statistics.samples,
                "source": against and against.images,
            },
            "verdict": words,
            "notes": notes,
            "skipped": skipped,
            "seconds": clock.seconds,
        },
    )
    texts = found.to_csv(), found.to_json()
    with together.united():
        if together.rank == 0:
            write_files(
                {path: (text or "").encode() for path, text in zip(outputs, texts, strict=True)}
            )
    return ShiftRun(found, csv, outputs[1], words, tuple(notes), skipped, len(every.listing))


def against_source(
    model: nn.Module,
    adapted: nn.Module,
    source: ImageLoader,
    target: ImageLoader,
    head: Head,
    layer: str | None,
    seed: int,
    progress: Progress | None = None,
    *,
    restyled: Transform | None = None,
) -> AgainstSource:
    """Compare source and target images: as they are, and at a layer before and after adapting.

    `restyled` is how the adapted model takes the target's images, if not as the model did. With
    labels of the source, the target's class shares and accuracy are estimated as well.
    """
    scope = f"feature:{layer or POOLED}"
    first = features(model, source, layer=layer, progress=progress)
    before = features(model, target, layer=layer, progress=progress)
    anew = target if restyled is None else target.prepared_by(restyled)
    after = features(adapted, anew, layer=layer, progress=progress)
    rows = [
        *_of_images(source, target, anew, seed),
        *feature_rows(scope, first, before, after, seed=seed),
    ]
    notes = [*_notes(source, head, len(first), len(before))]
    if source.listing.labels is not None:
        at_source = evaluate(model, source)
        on_target = evaluate(model, target), evaluate(adapted, anew)
        rows += _estimates(at_source, *on_target, source.listing.classes)
        apart = only_shares_moved(at_source, on_target[0], first, before, seed=seed)
        if apart is not None:
            of = source.listing.of
            notes.append(
                f"the target's class shares seem to have moved, not its {of}: they lie "
                f"{apart:.0%} from the source's, and source {of} drawn by them look like the "
                f"target's. AdaBN assumes equal shares and may hurt here."
            )
    skipped = {str(source.listing.root / path): why for path, why in source.skipped.items()}
    every = first, before, after
    return AgainstSource(tuple(rows), tuple(notes), len(first), skipped, every)


def _of_images(
    source: ImageLoader, target: ImageLoader, anew: ImageLoader, seed: int
) -> Iterator[Row]:
    """Compare images as they are; samples that no transform prepared have no known unit."""
    if source.listing.shape is not None:
        return
    restyled = None if anew is target else _figures(anew)
    yield from input_rows(_figures(source), _figures(target), restyled, seed=seed)
    yield from figure_rows(_sizes(source), _sizes(target))


def drawn(loader: ImageLoader, samples: int, seed: int) -> ImageLoader:
    """Return a loader of at most so many of the images, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loader.dataset), generator=generator)  # type: ignore[arg-type]
    return loader.subset(order[:samples].tolist())


@contextmanager
def some_readable(loader: ImageLoader) -> Iterator[None]:
    """Say that no image can be read, where that is why a block fails."""
    try:
        yield
    except AdaptkitError as error:
        total = len(loader.dataset)  # type: ignore[arg-type]
        if len(loader.skipped) < total:
            raise
        name, reason = next(iter(loader.skipped.items()))
        raise DataError(
            f"none of the {total:,} {loader.listing.of} in {loader.listing.source} can be read, "
            f"the first being {name} ({reason})"
        ) from error


def _figures(loader: ImageLoader) -> dict[str, NDArray[np.float64]]:
    """Return figures of all images as the model sees them, in the unit of the pixels."""
    parts = [image_figures(images) for images in pixels(loader)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sizes(loader: ImageLoader) -> dict[str, NDArray[np.float64]]:
    """Return the widths and heights of the image files, in pixels."""
    sizes = np.array(loader.sizes(), dtype=np.float64).reshape(-1, 2)
    return {"width": sizes[:, 0], "height": sizes[:, 1]}


def pixels(loader: ImageLoader) -> Iterator[torch.Tensor]:
    """Yield a loader's images as the model sees them, but in the unit of the pixels, 0 to 1."""
    wanted = loader.transform
    assert wanted is not None  # noqa: S101  they are images
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (wanted.mean, wanted.std))
    for batch in loader:
        yield inputs_of(batch) * std + mean


def _estimates(
    source: Evaluation, before: Evaluation, after: Evaluation, classes: Iterable[str] | None
) -> Iterator[Row]:
    for name, estimate_of in (
        ("accuracy_atc", thresholded_confidence),
        ("accuracy_doc", difference_of_confidences),
    ):
        first, second = estimate_of(source, before), estimate_of(source, after)
        yield Row(name, "all", first, second, second - first, n=len(before))
    names = list(classes or [])
    shares = zip(class_shares(source, before), class_shares(source, after), strict=True)
    for k, (a, b) in enumerate(shares):
        scope = f"class:{names[k] if names else k}"
        yield Row("estimated_share", scope, float(a), float(b), float(b - a), n=len(before))


def _notes(source: ImageLoader, head: Head, n: int, m: int) -> Iterator[str]:
    """Yield what n source images and m of the target cannot tell."""
    listing, of = source.listing, source.listing.of
    if listing.note:
        yield listing.note
    if listing.labels is None and head.kind == "classes":
        yield f"the source {of} have no labels, so the target's accuracy is not estimated."
    elif (
        listing.labels
        and listing.classes
        and (missing := len(listing.classes) - len(set(listing.labels)))
    ):
        yield (
            f"the source {of} lack {missing} of {len(listing.classes)} classes, which the "
            f"estimates of accuracy and class shares then know nothing of."
        )
    if unknown := unknown_metrics(n, m):
        yield (
            f"too few {of} ({n:,} of the source, {m:,} of the target) for {', '.join(unknown)}, "
            f"which are left out."
        )
