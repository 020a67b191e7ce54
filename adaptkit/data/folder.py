"""Which images a folder holds, and whether its sub-folders are classes."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from adaptkit.data.dicom import DICOM
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place, Remote, place
from adaptkit.errors import DataError, few

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
EXTENSIONS = (*_IMAGES, *DICOM)
_NAMED = 8  # names that a message lists


def list_images(
    root: str | Place, *, classes: Sequence[str] | None = None, outputs: int | None = None
) -> Listing:
    """Find the images below a folder, and their labels where its sub-folders are classes.

    The sub-folders are classes if one of them is named like one of `classes`; then each has to be.
    Where no class names are known, as many sub-folders as the model has `outputs` are taken for the
    classes in the order of their names, which is how torchvision's ImageFolder numbers them. In any
    other folder the images are unlabelled. Hidden files and folders are passed over.

    Raises:
        DataError: there is no such folder, it cannot be read, no image is in it, an unknown name
            stands beside known classes, or images lie beside class folders.
        DependencyError: it is a URL, and what reads its protocol is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("dog", "cat"):
    ...         Path(folder, name).mkdir()
    ...         Path(folder, name, "1.png").touch()
    ...     found = list_images(folder, classes=("cat", "dog", "emu"))
    >>> [path.as_posix() for path in found.paths], found.labels
    (['cat/1.png', 'dog/1.png'], (0, 1))
    """
    root = place(root)
    if isinstance(root, Remote):
        from adaptkit.data.remote import find_files

        files: Listing = find_files(root)
    else:
        _require_folder(root)
        files = Listing(root, [Path(file) for file in sorted(_walk(root))])
    names_of_all = [path.as_posix() for path in files.paths]
    images = [i for i, name in enumerate(names_of_all) if name.lower().endswith(EXTENSIONS)]
    if not images:
        several = "s" if len(files) > 1 else ""
        others = f", but {len(files):,} other file{several}: {few(names_of_all)}"
        others = others if len(files) else ""
        raise DataError(f"{root} holds no images ({', '.join(EXTENSIONS)}){others}")
    listing = files.at(images)
    paths = listing.paths
    loose = [path for path in paths if len(path.parts) == 1]
    folders = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    names, note = _class_names(root, folders, loose, classes, outputs)
    if names is None:
        return replace(listing, note=note)
    index = {name: number for number, name in enumerate(names)}
    labels = tuple(index[path.parts[0]] for path in paths)
    return replace(listing, labels=labels, classes=tuple(names), note=note)


def _require_folder(root: Path) -> None:
    try:
        mode = root.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        raise DataError(f"there is no folder {root}") from None
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise DataError(f"{root} is a file: give a folder of images")


def _class_names(
    root: Place,
    folders: list[str],
    loose: list[Path],
    classes: Sequence[str] | None,
    outputs: int | None,
) -> tuple[Sequence[str] | None, str]:
    """Return the names that the folders stand for, or None, and a note."""
    if not classes:
        return _by_count(folders, loose, outputs)
    unknown = [name for name in folders if name not in classes]
    known = len(folders) - len(unknown)
    if known and loose:
        raise DataError(
            f"{root} holds class folders, and beside them {len(loose)} image"
            f"{'s, the first being' if len(loose) > 1 else ','} {loose[0]}: "
            f"move what lies beside them into a class folder, or elsewhere"
        )
    if known and unknown:
        raise DataError(
            f"{root}: no class of the checkpoint is named {_some(unknown)}; "
            f"its classes are {_some(classes)}"
        )
    if folders and not known:
        return None, (
            f"no folder in {root} ({_some(folders)}) is named like a class of the checkpoint "
            f"({_some(classes)}), so the images count as unlabelled."
        )
    return (classes if known else None), ""


def _by_count(
    folders: list[str], loose: list[Path], outputs: int | None
) -> tuple[Sequence[str] | None, str]:
    if loose or outputs is None or len(folders) != outputs or outputs < 2:
        return None, ""
    if all(name.isdecimal() for name in folders) and folders != sorted(folders, key=int):
        return None, (
            "the checkpoint names no classes, and the folders' numbers sort otherwise as text, "
            "so the images count as unlabelled."
        )
    return folders, (
        f"the checkpoint names no classes; its {outputs} outputs are taken for the "
        f"{outputs} folders in the order of their names."
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _walk(root: Path) -> Iterator[str]:
    """Yield the files below `root`, as a/b.png, following links but never in a circle."""
    pending = [("", frozenset[tuple[int, int]]())]
    while pending:
        below, above = pending.pop()
        folder = root / below
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        pending.append((f"{below}{entry.name}/", above | {here}))
                    else:
                        yield below + entry.name
        except OSError as error:
            raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say no of a link that leads nowhere; where it is named like an image, `decode` says why."""
    try:
        return entry.is_dir()
    except OSError:
        return False
