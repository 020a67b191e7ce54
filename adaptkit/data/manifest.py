"""A table that names image files, and what is known of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptkit.data.columns import PATH, known_columns, texts
from adaptkit.data.listing import Listing
from adaptkit.errors import DataError


def list_manifest(
    path: Path, frame: Any, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> Listing:
    """Return the images that a manifest names, in its order.

    Args:
        path: of the manifest; relative paths in it are relative to its folder.
        frame: its columns, with one named "path".
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a row has no path, or another column is wrong.
    """
    names = texts(frame[PATH])
    if "" in names:
        raise DataError(f"{path}: row {names.index('') + 1:,} has no path")
    if bad := [name for name in names if "\0" in name]:
        raise DataError(f"{path}: a path holds a null character: {bad[0]!r:.160}")
    known = known_columns(frame, path, classes=classes, outputs=outputs)
    return Listing(
        path.parent,
        [Path(name) for name in names],
        known.labels,
        known.classes,
        known.note,
        known.domains,
        known.weights,
    )
