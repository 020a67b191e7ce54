"""The target's mix of classes as its user knows it."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adaptkit.errors import DataError, few, shown

AUTO, UNIFORM = "auto", "uniform"
_MOST_BYTES = 2**24


def known_shares(given: str | Path, classes: Sequence[str]) -> Tensor:
    """Return shape (K,), float64, of sum 1: the shares that are given.

    Args:
        given: "uniform", or a file of shares (see `read_shares`).
        classes: their names, in the order of the model's outputs.

    Raises:
        DataError: the file will not do.
    """
    shares = [1.0] * len(classes) if given == UNIFORM else read_shares(given, classes)
    return torch.tensor(shares, dtype=torch.float64) / math.fsum(shares)


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
