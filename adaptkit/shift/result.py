"""What every metric between two samples returns, and what it accepts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adaptkit.errors import DataError

Sample = ArrayLike | Tensor
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ShiftResult:
    """A metric between n samples of one domain and m of another; `float(result)` is its value.

    Args:
        value: in the metric's own unit.
        p_value: of "both samples come from one distribution"; None where it was not asked for.
        n: rows of the first sample.
        m: rows of the second.
    """

    value: float
    p_value: float | None
    n: int
    m: int

    def __float__(self) -> float:
        return self.value


def checked(x: Sample, y: Sample, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return two samples as tensors of shape (N, D) and (M, D), without a copy where possible.

    Raises:
        DataError: a sample is not two-dimensional, has fewer than `least` rows, no column or values
            that are not finite, or their numbers of columns differ.
    """
    first, second = _one(x, "x", least), _one(y, "y", least)
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"Expected x and y with the same number of features, got {first.shape[1]} "
            f"and {second.shape[1]}"
        )
    return first, second.to(first.device)


def blocks(x: Tensor, rows: int = 1024) -> list[Tensor]:
    """Cut a sample into views of at most so many rows; each becomes float64 only when used."""
    return list(x.split(rows))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) in float64, block by block."""
    mean = sum((wide(b).sum(0) for b in blocks(x)), torch.zeros(())) / len(x)
    products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in blocks(x):
        centred = wide(block) - mean
        products += centred.T @ centred
    return mean, products / (len(x) - 1)


def wide(x: Tensor) -> Tensor:
    """As float64 on the CPU."""
    return x.detach().to("cpu").to(torch.float64)


def _one(x: Sample, name: str, least: int) -> Tensor:
    try:
        tensor = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise DataError(f"Expected {name} to be an array of numbers: {error}") from None
    if tensor.ndim != 2 or not tensor.shape[1] or tensor.is_complex():
        raise DataError(f"Expected {name} of shape (N, D), got {tuple(tensor.shape)}")
    if len(tensor) < least:
        raise DataError(f"Expected {name} to have {least} rows or more, got {len(tensor)}")
    if not all(bool(block.isfinite().all()) for block in blocks(tensor)):
        raise DataError(f"Expected {name} to hold finite numbers, got NaN or infinity")
    return tensor
