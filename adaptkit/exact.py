"""What reading and writing files of several kinds have in common: exactness and bounds."""

import zipfile

import torch
from torch import Tensor


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether all values are the same, NaN being the same as NaN.

    >>> same_values(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    True
    """
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    )


def is_packed(archive: zipfile.ZipFile, size: int) -> bool:
    """Whether an archive's records are compressed or overlap, as in none that torch writes.

    Args:
        archive: that may be from anywhere.
        size: of its file, in bytes.
    """
    records = archive.infolist()
    return (
        any(record.compress_type != zipfile.ZIP_STORED for record in records)
        or sum(record.file_size for record in records) > size
    )
