"""A table that names image files, and what is known of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptkit.data.columns import PATH, known_columns, texts
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place, Remote, is_url, place
from adaptkit.errors import DataError


def list_manifest(
    path: Place, frame: Any, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> Listing:
    """Return the images that a manifest names, in its order.

    Args:
        path: of the manifest; relative paths in it are relative to its folder, and URLs are whole.
        frame: its columns, with one named "path".
        classes: the names of the model's outputs, if they are known.
        outputs: how many outputs the model has, if that is known.

    Raises:
        DataError: a row has no path, or one that cannot be meant, or another column is wrong.
    """
    names = texts(frame[PATH])
    if "" in names:
        raise DataError(f"{path}: row {names.index('') + 1:,} has no path")
    if bad := [name for name in names if "\0" in name]:
        raise DataError(f"{path}: a path holds a null character: {bad[0]!r:.160}")
    known = known_columns(frame, path, classes=classes, outputs=outputs)._asdict()
    if isinstance(path, Path) and not any(map(is_url, names)):
        return Listing(path.parent, [Path(name) for name in names], given=path, **known)
    from adaptkit.data.remote import RemoteListing

    shown, urls = _urls(path, names)
    return RemoteListing(path.parent, shown, given=path, urls=urls, **known)


def _urls(path: Place, names: list[str]) -> tuple[list[Path], list[str]]:
    """Return what to call files of which some have URLs, and their URLs or paths on this machine.

    Raises:
        DataError: a manifest from elsewhere names a file of this machine.
    """
    shown, urls = [], []
    for name in names:
        where = place(name) if is_url(name) else path.parent / name
        here = isinstance(where, Path) or (not is_url(name) and name.startswith("/"))
        if here and isinstance(path, Remote):
            raise DataError(f"{path}: expected URLs, or paths below its folder, got {name!r:.160}")
        urls.append(where.url if isinstance(where, Remote) else str(where))
        shown.append(str(where).partition("://")[2] if is_url(name) else name)
    if len(set(shown)) < len(set(urls)):  # what is not shown of URLs tells them apart
        shown = [f"{name} (row {number:,})" for number, name in enumerate(shown, start=1)]
    return [Path(name) for name in shown], urls
