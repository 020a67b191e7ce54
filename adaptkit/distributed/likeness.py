"""Whether the data sets of several processes are the same one, told from a few samples."""

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from adaptkit.loaders import Named, seeded

_LOOKED_AT = 8  # samples beside the first that show whether two data sets are the same


class Likeness(NamedTuple):
    """What tells a loader's data set from another one.

    Args:
        digest: of its length, and of its samples' names, or of what stays the same of nine samples
            when they are read again.
        sure: whether all of them stays the same, so that two digests that are equal say enough.
    """

    digest: str
    sure: bool = True


def likeness(loader: Any, indices: Sequence[int]) -> Likeness:
    """Look at the samples of a loader with these indices; what they draw at random comes alike."""
    last = len(indices) - 1
    few = (
        sorted({indices[last * i // _LOOKED_AT] for i in range(_LOOKED_AT + 1)}) if indices else []
    )
    digest = hashlib.sha256(np.asarray(indices, dtype=np.int64).tobytes())
    if isinstance(loader, Named):  # an image that one machine cannot read is still the same one
        digest.update("\0".join(loader.names()).encode(errors="surrogateescape"))
        return Likeness(digest.hexdigest())
    sure = True
    for index in few:
        once, again = _read(loader.dataset, index), _read(loader.dataset, index)
        sure = sure and once == again
        digest.update(b"".join(a for a, b in zip(once, again, strict=False) if a == b))
    return Likeness(digest.hexdigest(), sure)


def _read(dataset: Any, index: int) -> list[bytes]:
    """Return what tells the pieces of a sample from another's."""
    with seeded(0):
        try:
            leaves = tree_leaves(dataset[index])
        except Exception as error:  # noqa: BLE001  whoever needs the sample will say so
            return [str(error).encode()]
    return [_bytes(leaf) for leaf in leaves]


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, torch.Tensor):
        array = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str((leaf.dtype, leaf.shape)).encode() + array.numpy().tobytes()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        return str((leaf.dtype, leaf.shape)).encode() + np.ascontiguousarray(leaf).tobytes()
    if leaf is None or isinstance(leaf, (str, int, float, complex, bytes, PurePath)):
        return repr(leaf).encode()
    if hasattr(leaf, "getbands"):  # an image of PIL
        return str((leaf.mode, leaf.size)).encode() + bytes(leaf.tobytes())
    try:
        return pickle.dumps(leaf)
    except Exception:  # noqa: BLE001  it cannot be compared
        return os.urandom(16)
