"""Whatever holds a target's samples, as batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptkit.data import columns, stored
from adaptkit.data.arrays import list_array, list_table
from adaptkit.data.columns import PATH, read_columns
from adaptkit.data.folder import EXTENSIONS, list_images
from adaptkit.data.listing import Listing
from adaptkit.data.loader import ImageLoader, check
from adaptkit.data.manifest import list_manifest
from adaptkit.data.place import Place, Remote, place
from adaptkit.data.shards import is_sharded, list_shards
from adaptkit.data.stored import read_arrays
from adaptkit.errors import DataError
from adaptkit.transform import Transform


def open(  # noqa: A001  adaptkit.data.open is what it is called by
    path: str | Place,
    *,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    memory: int | None = None,
    fast_jpeg: bool = False,
) -> ImageLoader:
    """Open a target, whatever it is, as batches in a fixed order.

    ========================  =====================================================================
    a folder                  of images, class folders or not (see `image_folder`)
    .csv, .tsv, .parquet      with a column "path": a manifest of image files, and if it has them
                              their "label", "domain" and "weight" in the statistics; else a table
                              of features for a model that takes (N, F), with the same columns
    .tar, or a folder or a    images and what is said of them, as WebDataset keeps them; read where
    pattern of these          they lie (see `adaptkit.data.shards.list_shards`)
    .npy, .npz, .pt, .pth,    images as pixels, or what the model takes as it is: images, signals
    .safetensors              (N, C, L), features (N, F); see `adaptkit.data.arrays.list_array`
    ========================  =====================================================================

    Args:
        path: of the target: on this machine, or a URL such as s3://bucket/images/ or
            https://host/images/ (`pip install "adaptkit[remote]"`), by fsspec. Of a folder nothing
            is fetched but its list, and then what is read.
        transform: from an image to the model's input, as `Checkpoint.transform` has it; None for a
            model that takes no images.
        classes: the names of the model's outputs, as `Checkpoint.classes` has them.
        outputs: how many outputs the model has, for where `classes` is not known.
        batch_size: samples a batch.
        workers: processes that read images; 0 reads in this one.
        memory: bytes that decoded images may take, which are kept for the next pass; beyond that
            they go into a temporary file. By default a quarter of what is free.
        fast_jpeg: see `image_folder`.

    Raises:
        DataError: what is wrong with the target, or with the arguments.
        DependencyError: what reads this kind of file or of URL is not installed.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     signals = np.arange(24, dtype=np.int16).reshape(3, 2, 4)
    ...     np.savez(f"{folder}/signals.npz", x=signals, y=[0, 1, 1])
    ...     loader = open(f"{folder}/signals.npz", outputs=2)
    ...     [(x.shape, x.dtype, y.tolist()) for x, y in loader]
    [(torch.Size([3, 2, 4]), torch.float32, [0, 1, 1])]
    """
    check(batch_size, workers)
    listing = listed(path, pixels=transform is not None, classes=classes, outputs=outputs)
    return ImageLoader(
        listing,
        transform,
        batch_size=batch_size,
        workers=workers,
        memory=memory,
        fast_jpeg=fast_jpeg,
    )


def listed(
    path: str | Place,
    *,
    pixels: bool = True,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
) -> Listing:
    """Return where a target's samples are, and what is known of each; arguments as for `open`.

    Args:
        path: of the target.
        pixels: whether the model takes images.
        classes: as there.
        outputs: as there.

    Raises:
        DataError: what is wrong with the target.
        DependencyError: what reads this kind of file or of URL is not installed.
    """
    path = place(path)
    kind = _kind(path)
    known: dict[str, Any] = {"classes": classes, "outputs": outputs}
    if kind == "shards":
        return list_shards(path, **known)
    if kind == "array":
        return list_array(path, _read(path, read_arrays), pixels=pixels, **known)
    if kind == "table":
        frame = _read(path, read_columns)
        of_files = PATH in frame.columns
        return (list_manifest if of_files else list_table)(path, frame, **known)
    return list_images(path, **known)


def shape_of(path: str | Place, *, pixels: bool) -> tuple[int, ...] | None:
    """Return the shape of samples that are ready for a model; None of images.

    Raises:
        DataError: what is wrong with the target.
    """
    images = _kind(place(path)) in ("folder", "shards")
    return None if images else listed(path, pixels=pixels).shape


def is_file(path: Place) -> bool:
    """Whether a target is one file; a URL's ending says so."""
    return path.is_file() if isinstance(path, Path) else _kind(path) != "folder"


def _read(path: Place, reader: Callable[[Path], Any]) -> Any:
    if isinstance(path, Path):
        return reader(path)
    from adaptkit.data.connections import read_file

    return read_file(path, reader)


def _kind(path: Place) -> str:
    suffix = path.suffix.lower()
    if isinstance(path, Remote):
        is_file = is_there = suffix in (*columns.SUFFIXES, *stored.SUFFIXES, *EXTENSIONS)
        if not is_file and is_sharded(path):
            return "shards"
    else:
        try:
            is_file, is_there = path.is_file(), path.exists()
            if is_sharded(path):
                return "shards"
        except (OSError, ValueError):  # which list_images names
            return "folder"
    if not is_there and suffix in (*columns.SUFFIXES, *stored.SUFFIXES, ".tar"):
        raise DataError(f"there is no file {path}")
    if not is_file:
        return "folder"
    if suffix in columns.SUFFIXES:
        return "table"
    if suffix in stored.SUFFIXES:
        return "array"
    if suffix in EXTENSIONS:
        raise DataError(f"{path} is one image: give the folder that it is in")
    raise DataError(
        f"{path} is a file of no known kind: expected a folder of images, a manifest or table "
        f"({', '.join(columns.SUFFIXES)}), an array ({', '.join(stored.SUFFIXES)}), or .tar"
    )
