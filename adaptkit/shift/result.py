"""What every metric between two samples returns, and what it accepts."""

import sys
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adaptkit.errors import DataError

Sample = ArrayLike | Tensor
Floats = NDArray[np.float64]

LEAST_P = sys.float_info.min  # what a p-value is at least: it is never 0
_LARGEST = 1e60  # beyond, fourth powers and sums of them come near what float64 holds


@dataclass(frozen=True)
class ShiftResult:
    """A metric between n samples of one domain and m of another; `float(result)` is its value.

    Args:
        value: in the metric's own unit.
        p_value: of "both samples come from one distribution"; None where it was not asked for.
        n: rows of the first sample; of `symmetric_kl`, channels.
        m: rows of the second, or channels.
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
        DataError: a sample is not two-dimensional, has fewer than `least` rows, no column, values
            that are not finite or beyond ±1e60, or their numbers of columns differ.
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


def as_tensor(x: Sample, name: str) -> Tensor:
    """Return an array or a tensor of real numbers as a tensor, without a copy where possible.

    Raises:
        DataError: `x` is neither, or holds something else.
    """
    if isinstance(x, Tensor):
        if x.is_complex():
            raise DataError(f"Expected {name} to be an array of real numbers, got {x.dtype}")
        return x.detach().to_dense()
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"Expected {name} to be an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"Expected {name} to be an array of real numbers, got {array.dtype}")
    return _shared(array)


def _shared(array: NDArray[np.generic]) -> Tensor:
    """As a view where torch can have one: not of other byte orders, long doubles or steps back."""
    wanted = np.dtype("f8") if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only arrays; nothing is written
        native = array.astype(wanted, copy=any(step < 0 for step in array.strides))
        return torch.from_numpy(native)


def _one(x: Sample, name: str, least: int) -> Tensor:
    tensor = as_tensor(x, name)
    if tensor.ndim != 2 or not tensor.shape[1]:
        raise DataError(f"Expected {name} of shape (N, D), got {tuple(tensor.shape)}")
    if len(tensor) < least:
        rows = "1 row" if least == 1 else f"{least} rows"
        raise DataError(f"Expected {name} to have {rows} or more, got {len(tensor)}")
    if not all(bool(block.isfinite().all()) for block in blocks(tensor)):
        raise DataError(f"Expected {name} to hold finite numbers, got NaN or infinity")
    if tensor.dtype == torch.float64 and any(
        bool((block.abs() > _LARGEST).any()) for block in blocks(tensor)
    ):
        raise DataError(
            f"Expected {name} to hold numbers within ±{_LARGEST:g}, whose squares can be summed: "
            f"scale both samples down"
        )
    return tensor
