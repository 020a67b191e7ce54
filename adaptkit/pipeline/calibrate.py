"""A checkpoint and labelled images of its own domain to a checkpoint that can judge targets."""

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Unpack

from adaptkit.checkpoint import SUFFIXES, budget, checkpoint_files, output_paths, suffix_of
from adaptkit.data import Place, place
from adaptkit.device import resolve_device
from adaptkit.errors import DataError, EstimationError, OutputError
from adaptkit.files import check_outputs, write_files
from adaptkit.guard import Calibration, calibrate
from adaptkit.pipeline.common import Progress, refuse_too_many_bad
from adaptkit.pipeline.guarding import some_of_each
from adaptkit.pipeline.opening import Said, head_of, open_checkpoint, open_samples, source_files

EACH = 1000  # images of a class at most


@dataclass(frozen=True)
class Calibrated:
    """What one run of `calibrate` did.

    Args:
        calibration: as the file holds it.
        images: that it was taken from.
        skipped: path -> why an image could not be read.
        bytes: that it takes in the file.
        share: of the file's bytes before.
        written: the files.
        of: what it was taken from, "images" or "samples".
    """

    calibration: Calibration
    images: int
    skipped: dict[str, str]
    bytes: int
    share: float
    written: tuple[Path, ...]
    of: str = "images"


def calibrate_checkpoint(
    source: str | Path,
    source_data: str | Place,
    out: str | Path | None = None,
    *,
    most_bytes: int | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    fast_jpeg: bool = False,
    seed: int = 0,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **said: Unpack[Said],
) -> Calibrated:
    """Measure what a model shows of each class of its own domain; write it into its checkpoint.

    What loaded the file before loads the new one too, and finds the same weights.

    Args:
        source: a checkpoint of a classifier; never written.
        source_data: class folders of the domain that it was trained on, best of images that it was
            not trained on. At most 1,000 of each class are taken, drawn at random.
        out: by default ``<source stem>-calibrated<suffix>`` in the current folder.
        most_bytes: that the calibration may take in the file; by default a twentieth of it, or
            1 MiB where that is more.
        device: as for `adapt_folder`, like the next three.
        batch_size: images a batch.
        workers: processes that decode images.
        fast_jpeg: see `adaptkit.image_folder`.
        seed: of the draws behind `Calibration.typicality`.
        force: replace an output that exists.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress("calibrating", done, total)``.
        said: see `Said`.

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the images or the output; nothing has been
            written then.
    """
    source, source_data = Path(source), place(source_data)
    end = suffix_of(source)
    suffix = end if end in SUFFIXES or source.suffix in SUFFIXES else ".pt"
    out = Path(out) if out else Path(f"{source.name.removesuffix(end)}-calibrated{suffix}")
    if not out.name.endswith(SUFFIXES):
        raise OutputError(f"Expected an output ending in {', '.join(SUFFIXES)}, got {out}")
    check_outputs([out], inputs=[source, *source_files(said)], force=force)
    where = resolve_device(device)
    checkpoint = open_checkpoint(source, **said)
    whole = output_paths(out, checkpoint)
    check_outputs(whole, inputs=[*checkpoint.files, *source_files(said)], force=force)
    model = checkpoint.model.to(where)
    head = head_of(checkpoint, source_data)
    if head.kind != "classes":
        raise EstimationError(f"{source} gives no classes to calibrate: expected a classifier")
    images = open_samples(checkpoint, head, source_data, batch_size, workers, fast_jpeg)
    if images.listing.classes is None:
        why = images.listing.note or "it has no labels"
        raise DataError(f"{source_data}: expected labels, as class folders give them: {why}")
    images = images.subset(some_of_each(images.listing.labels or (), EACH, seed))
    count = len(images.dataset)  # type: ignore[arg-type]
    found = calibrate(
        model,
        images,
        seed=seed,
        progress=progress and (lambda stage, n, _: progress(stage, n, count)),
    )
    refuse_too_many_bad(images, skip_bad)
    allowed = budget(checkpoint.size) if most_bytes is None else most_bytes * 3 // 4
    try:
        packed = found.to_bytes(allowed)
    except DataError as error:
        raise DataError(f"{error}, and a third more in the file, where it is text") from None
    files = checkpoint_files(out, model, like=checkpoint, adapted=None, calibration=packed)
    write_files(files)
    taken = -(-len(packed) // 3) * 4
    return Calibrated(
        calibration=Calibration.from_bytes(packed),
        images=int(found.confusion.sum()),
        skipped=dict(images.skipped),
        bytes=taken,
        share=taken / checkpoint.size,
        written=tuple(files),
        of=images.listing.of,
    )
