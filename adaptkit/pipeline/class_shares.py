"""The target's mix of classes as its user knows it, and what of the source it takes to use it."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from adaptkit.data import ImageLoader
from adaptkit.errors import DataError, EstimationError, few, shown
from adaptkit.guard import ClassMix, class_moments
from adaptkit.pipeline.common import Progress
from adaptkit.pipeline.opening import Head

UNIFORM = "uniform"
_MOST_BYTES = 2**24


def known_mix(
    model: nn.Module,
    of_source: ImageLoader | None,
    head: Head,
    given: str | Path,
    progress: Progress | None = None,
) -> ClassMix:
    """Return the correction for a target whose shares of the classes are given.

    Args:
        model: with its source statistics.
        of_source: labelled images of the source, some of each class.
        head: what the model gives.
        given: "uniform", or a file of shares (see `read_shares`).
        progress: called as ``progress("measuring", done, total)``.

    Raises:
        DataError: the file will not do, or there are no such images.
        EstimationError: the model gives no classes.
    """
    if head.kind != "classes" or head.size is None:
        raise EstimationError("class shares are for models that give classes: leave them out")
    names = None if of_source is None else of_source.listing.classes
    if of_source is None or names is None:
        raise DataError(
            "class shares need labelled source images to know the classes by: give --source-data "
            "a folder with a sub-folder for each class"
        )
    shares = [1.0] * len(names) if given == UNIFORM else read_shares(given, names)
    total = math.fsum(shares)
    count = len(of_source.dataset)  # type: ignore[arg-type]
    watch = progress and (lambda stage, n, _: progress(stage, n, count))
    seen = class_moments(model, of_source, classes=head.size, progress=watch)
    return ClassMix(seen, [share / total for share in shares])


def read_shares(path: str | Path, classes: Sequence[str]) -> list[float]:
    """Read how often each class occurs, from lines of ``class,share``.

    Counts, percentages or shares: only their ratios matter. A class that the file does not name has
    none. A first line of names of columns is passed over.

    Raises:
        DataError: the file cannot be read or has no such lines, names a class that is none or
            twice, or a share is negative, not finite, or all are 0.
    """
    path = Path(path)
    found: dict[str, float] = {}
    for number, cells in enumerate(_lines(path), 1):
        name, share = cells[0].strip(), _number(cells[1]) if len(cells) == 2 else None
        if share is None and number == 1 and len(cells) == 2 and name not in classes:
            continue  # names of columns
        if share is None:
            line = shown(",".join(cells))
            raise DataError(f"{path}: expected lines of class,share such as cat,0.25, got {line}")
        if name not in classes:
            known = f"{len(classes)} ({few(classes)})"
            raise DataError(f"{path} names a class {shown(name)}, which is none of the {known}")
        if name in found:
            raise DataError(f"{path} names the class {shown(name)} twice")
        found[name] = share
    if not any(found.values()):
        raise DataError(f"{path}: expected the share of one class or more to be above 0")
    return [found.get(name, 0.0) for name in classes]


def _lines(path: Path) -> list[list[str]]:
    """Return the cells of each line that has any."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is no list of class shares: it is larger than 16 MiB")
        lines = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
        return [line for line in lines if any(map(str.strip, line))]
    except OSError as error:
        raise DataError(f"cannot read the class shares in {path}: {error.strerror}") from None
    except (ValueError, csv.Error):
        raise DataError(f"{path} is no list of class shares: expected class,share lines") from None


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
