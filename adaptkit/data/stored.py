"""The arrays in a file, mapped into memory: only what is read is ever loaded."""

import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptkit.data.place import Place
from adaptkit.errors import DataError, few

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")

Array = NDArray[Any] | Tensor


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays in a file by name; one that has no name has "".

    Of a compressed .npz, and of a .pt that torch below 1.6 wrote, there is no map: the one is
    unpacked into a temporary file, the other read whole.

    Raises:
        DataError: it cannot be read, or holds anything but arrays; no code in it is run.
    """
    reader = _READERS[path.suffix.lower()]
    try:
        with path.open("rb"):  # so that what the system refuses is told from what a reader does
            pass
        return reader(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001  each reader raises its own on a broken file
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} cannot be read as {path.suffix}: {reason}") from None


def _npy(path: Path) -> dict[str, Array]:
    # Copied on write: torch warns of memory that cannot be written to.
    return {"": np.load(path, mmap_mode="c", allow_pickle=False)}


def _npz(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise DataError(f"it holds {info.filename!r:.80}, which is no array")
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED:
                with path.open("rb") as file:
                    found[name] = _mapped(file, _start(file, info.header_offset))
                continue
            # Has no name in the file system, and so is gone when the map is.
            with tempfile.TemporaryFile() as file:
                with archive.open(info) as member:
                    while block := member.read(2**20):
                        file.write(block)
                found[name] = _mapped(file, 0)
    return found


def _start(file: IO[bytes], header: int) -> int:
    """Return where in a zip file the content behind a local header lies."""
    file.seek(header + 26)
    lengths = np.frombuffer(file.read(4), "<u2").tolist()
    return header + 30 + int(sum(lengths))


def _mapped(file: IO[bytes], start: int) -> NDArray[Any]:
    """Map an array in numpy's format that begins at an offset of a file."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise DataError(f"an array is in version {version} of numpy's format, which is not known")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise DataError("an array holds Python objects, which could run code: save numbers")
    if not np.prod(shape, dtype=np.int64):
        return np.zeros(shape, dtype)
    order = "F" if fortran else "C"
    return np.memmap(file, dtype, "c", file.tell(), shape, order=order)  # type: ignore[call-overload,no-any-return]


def _pt(path: Path) -> dict[str, Array]:
    # A map needs the zip format that torch writes since 1.6.
    with warnings.catch_warnings():  # of sparse tensors, which are refused below
        warnings.simplefilter("ignore", UserWarning)
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    if isinstance(found, Tensor):
        found = {"": found}
    if isinstance(found, (tuple, list)) and 0 < len(found) < 3:
        found = dict(zip(("x", "y"), found, strict=False))
    if isinstance(found, Mapping):
        arrays = {str(k): v for k, v in found.items() if isinstance(v, (Tensor, list))}
        if odd := [k for k, v in arrays.items() if isinstance(v, Tensor) and not _is_plain(v)]:
            raise DataError(f"{few(odd)} is sparse or quantised: expected dense numbers")
        return {k: v if isinstance(v, Tensor) else np.asarray(v) for k, v in arrays.items()}
    raise DataError(
        f"it holds a {type(found).__name__}: expected a tensor, a pair of samples and labels, "
        f"or a dict of tensors"
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"it cannot be read as .safetensors: {error}") from None


_READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
}


def chosen(arrays: Mapping[str, Array], keys: tuple[str, ...], path: Place) -> Array:
    """Return the array that holds the samples: of a usual name, or the only one.

    Raises:
        DataError: there is none, or several could be it.
    """
    if found := named(arrays, keys):
        return found[1]
    large = [name for name, array in arrays.items() if array.ndim > 1]
    if len(large) == 1:
        return arrays[large[0]]
    held = f"the arrays {few(list(arrays))}" if arrays else "no arrays"
    raise DataError(f"{path} holds {held}: expected the samples under one of {', '.join(keys)}")


def named(arrays: Mapping[str, Array], keys: tuple[str, ...]) -> tuple[str, Array] | None:
    """Return the first array that has one of some names, in capitals or not."""
    small = {name.lower(): (name, array) for name, array in arrays.items()}
    return next((small[key] for key in keys if key in small), None)
