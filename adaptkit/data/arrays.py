"""Samples in one array: images as pixels, or what a model takes as it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adaptkit.batches import INPUT_KEYS, LABEL_KEYS
from adaptkit.data.columns import KNOWN, PATH, as_weights, known_columns, numbering, numbers
from adaptkit.data.decode import Needed, eight_bit
from adaptkit.data.labels import NONE, as_indices
from adaptkit.data.listing import Listing, state_of
from adaptkit.data.place import Place
from adaptkit.data.stored import SUFFIXES, Array, chosen, named, read_arrays
from adaptkit.errors import DataError, few

_LOOKED_AT = 8  # rows beside the first that tell an array from another
_DOMAIN_KEYS, _WEIGHT_KEYS = ("domain", "domains"), ("weight", "weights")
_READY = "{name} holds no pixels: its values are neither resized nor normalised."

_NUMBERED = "The first column of {name} has no name and numbers the rows: it is left out."


@dataclass(frozen=True)
class _Names(Sequence[Path]):
    """What to call the rows of an array: file[0], file[1], and so on."""

    file: str
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        return Path(f"{self.file}[{self.rows[number]}]")


@dataclass(frozen=True, eq=False)
class ArrayListing(Listing):
    """The rows of an array.

    Args:
        file: in which the array is.
        rows: of the array, in order.
        array: of shape (N, ...); None where it is to be read from `file` when it is first used.
    """

    file: Place = Path()
    rows: Sequence[int] = ()
    array: Array | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave a mapped array behind: another process maps it anew, if it lies here."""
        return {**self.__dict__, **({"array": None} if self._mapped else {})}

    def read(self, index: int, _: Needed | None = None) -> Image.Image | Tensor:
        """Return a row: an image of uint8 or uint16 pixels, or float32."""
        row = self._array()[self.rows[index]]
        if self.shape is None:
            return _image(np.asarray(row))
        if isinstance(row, Tensor):
            sample = row.to(torch.float32, copy=True)
        else:
            with np.errstate(over="ignore"):
                sample = torch.from_numpy(np.array(row, dtype=np.float32))
        if not sample.isfinite().all():
            raise DataError("holds a value that is NaN, infinite, or no number")
        return sample

    def _array(self) -> Array:
        if self.array is None and isinstance(self.file, Path):
            again = chosen(read_arrays(self.file), INPUT_KEYS, self.file)
            object.__setattr__(self, "array", again)  # frozen for all others
        assert self.array is not None  # noqa: S101  it is now
        return self.array

    def size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image; None of anything else."""
        image = None if self.shape is not None else self.read(index)
        return image.size if isinstance(image, Image.Image) else None

    def at(self, indices: Sequence[int]) -> "ArrayListing":
        """Return some of the rows, in this order."""
        found = super().at(indices)
        assert isinstance(found, ArrayListing)  # noqa: S101
        rows = [self.rows[i] for i in indices]
        return replace(found, rows=rows, paths=_Names(self.file.name, rows))

    @property
    def forks(self) -> bool:
        """Whether other processes may read it."""
        return isinstance(self.file, Path)

    def contents(self) -> str:
        """Return the SHA-256 of a few rows, and of the array's form."""
        array = self._array()
        digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)}".encode())
        for number in range(_LOOKED_AT + 1):
            row = array[self.rows[(len(self) - 1) * number // _LOOKED_AT]]
            if isinstance(row, Tensor):
                row = row.reshape(-1).contiguous().view(torch.uint8).numpy()
            digest.update(np.ascontiguousarray(row).tobytes())
        return digest.hexdigest()

    def state(self) -> str:
        """Return the SHA-256 of what is known and of a table's values, or an array's file's state.

        A table is in memory, so that rows beside these may change; an array may be of any size, so
        of its file the size and the time of change stand for all in it.
        """
        known: tuple[Any, ...] = (self.labels, self.weights)
        if self.file.suffix.lower() in SUFFIXES or self.array is None:
            content, known = self._state_of_file(), (list(self.rows), *known)
        else:
            content = np.asarray(self.array)[list(self.rows)].tobytes()
        return hashlib.sha256(content + repr(known).encode()).hexdigest()

    def _state_of_file(self) -> bytes:
        if isinstance(self.file, Path):
            return state_of(self.file)
        from adaptkit.data.connections import stamp_of

        return stamp_of(self.file).encode()

    @property
    def _mapped(self) -> bool:
        return isinstance(self.file, Path) and self.file.suffix.lower() in SUFFIXES


def list_array(
    path: Place,
    arrays: dict[str, Array],
    *,
    pixels: bool,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
) -> ArrayListing:
    """Return the samples of an array in a file, with labels, domains and weights where it has them.

    Integers of 8 or 16 bits without a sign, of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with
    1, 3 or 4 channels, are pixels if the model takes images. All else is what the model takes, as
    it is: images (N, C, H, W), signals (N, C, L), features (N, F), in any type of numbers.

    Args:
        path: a .npy, .npz, .pt, .pth or .safetensors file. Of several arrays in it the samples are
            that named x, data, image, images, input, inputs or pixel_values, or the only one with
            two dimensions or more; those named y, label, labels, target or targets, domain, and
            weight say more of them.
        arrays: what `read_arrays` found in it.
        pixels: whether the model takes images.
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: the file cannot be read, or an array is of a form that does not fit.
    """
    samples = chosen(arrays, INPUT_KEYS, path)
    if samples.ndim < 2 or not len(samples) or not all(samples.shape):
        raise DataError(f"{path}: expected samples of shape (N, ...), got {tuple(samples.shape)}")
    if not _numeric(samples):
        raise DataError(f"{path}: expected samples that are numbers, got {samples.dtype}")
    found = NONE
    if values := _beside(arrays, LABEL_KEYS, samples, path):
        found = as_indices(values, path, classes=classes, outputs=outputs)
    given = _beside(arrays, _WEIGHT_KEYS, samples, path)
    ready = not (pixels and _are_pixels(samples, path))
    notes = [found.note, _READY.format(name=path.name) if ready and pixels else ""]
    return ArrayListing(
        root=path.parent,
        paths=_Names(path.name, range(len(samples))),
        labels=found.labels,
        classes=found.classes,
        partly=found.partly,
        note=" ".join(filter(None, notes)),
        domains=_beside(arrays, _DOMAIN_KEYS, samples, path),
        weights=as_weights(_as_numbers(given, path), path) if given else None,
        shape=tuple(samples.shape[1:]) if ready else None,
        given=path,
        file=path,
        rows=range(len(samples)),
        array=samples,
    )


def list_table(
    path: Place, frame: Any, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> ArrayListing:
    """Return the rows of a table whose columns, but for label, domain and weight, are features.

    First columns without a name that number the rows, as pandas saves them, are left out.

    Args:
        path: of the table.
        frame: its columns, in the order in which the model takes them.
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a column holds no numbers at all, or one of those three is wrong.
    """
    left_out = numbering(frame)
    features = [name for name in frame.columns if name not in (*KNOWN, *left_out)]
    columns = {name: numbers(frame[name]) for name in features}
    if words := [name for name, values in columns.items() if np.isnan(values).all()]:
        raise DataError(
            f"{path}: column {few(words)} holds no numbers: leave it out of a table of features; a "
            f"list of image files has a column {PATH!r}"
        )
    if not features:
        raise DataError(f"{path} has no column of features, and none named {PATH!r}")
    known = known_columns(frame, path, classes=classes, outputs=outputs)
    without = _NUMBERED.format(name=path.name) if left_out else ""
    with np.errstate(over="ignore"):
        array = np.stack(list(columns.values()), 1).astype(np.float32)
    return ArrayListing(
        root=path.parent,
        paths=_Names(path.name, range(len(array))),
        **{**known._asdict(), "note": " ".join(filter(None, (known.note, without)))},
        shape=(len(features),),
        given=path,
        file=path,
        rows=range(len(array)),
        array=array,
    )


def _numeric(array: Array) -> bool:
    return not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"


def _are_pixels(array: Array, path: Place) -> bool:
    unsigned = str(array.dtype).startswith("torch.uint")
    if not isinstance(array, Tensor):
        unsigned = array.dtype.kind == "u"
    if not unsigned or array.dtype.itemsize > 2:
        return False
    shape = tuple(array.shape)
    if len(shape) == 3 or (len(shape) == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS)):
        return True
    raise DataError(
        f"{path}: expected pixels of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 "
        f"channels, got {shape}"
    )


_CHANNELS = (1, 3, 4)


def _image(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype.itemsize == 2:
        pixels = np.round(pixels / 257).astype(np.uint8)  # as `decode` does
    return eight_bit(Image.fromarray(np.ascontiguousarray(pixels)))


def _beside(
    arrays: dict[str, Array], keys: tuple[str, ...], samples: Array, path: Place
) -> list[str] | None:
    """Return what an array beside the samples says of each, as text."""
    found = named(arrays, keys)
    if found is None or found[1] is samples:
        return None
    name, array = found
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if tuple(array.shape) != (len(samples),):
        raise DataError(
            f"{path}: expected {name!r} of shape ({len(samples)},), as there are as many samples, "
            f"got {tuple(array.shape)}"
        )
    return [_text(value) for value in array.tolist()]


def _text(value: Any) -> str:
    """Return what stands in an array beside the samples; "" for what says that there is nothing."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None or value != value else str(value)


def _as_numbers(values: list[str], path: Place) -> np.ndarray:
    try:
        return np.array([value or "nan" for value in values], dtype=np.float64)
    except ValueError:
        raise DataError(
            f"{path}: expected weights that are numbers, got {values[0]!r:.80}"
        ) from None
