"""Writing results so that nothing is lost and nothing is left half-written."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from adaptkit.errors import OutputError


def check_outputs(outputs: Iterable[Path], *, inputs: Iterable[Path] = (), force: bool) -> None:
    """Refuse, before any work is done, outputs that could not or should not be written.

    Raises:
        OutputError: an output is one of the inputs, stands twice, is a folder, exists without
            `force`, has an impossible name, or lies in a folder that is missing or not writable.
    """
    inputs, seen = list(inputs), set[Path]()
    for path in outputs:
        try:
            _check_output(path, inputs, seen, force)
        # Names that are too long, links in a circle (RuntimeError), a NUL inside (ValueError).
        except (OSError, RuntimeError, ValueError) as error:
            raise _cannot_write(path, error) from None


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files or none: temporary files beside them, flushed to disk, then moved into place.

    Raises:
        OutputError: the system refused (disk full, permission); nothing of `contents` is in place,
            and files that were there before are as they were.
    """
    path = Path()
    with contextlib.ExitStack() as cleanup, contextlib.ExitStack() as undo:
        try:
            moves = []
            for path, content in contents.items():
                moves.append((_write_beside(path, content, cleanup), path))
            kept = []
            for temporary, path in moves:
                old = _keep(path, temporary.with_suffix(".old"))
                undo.callback(_put_back, old, path)
                kept.append(old)
                temporary.replace(path)
        except (OSError, ValueError) as error:
            raise _cannot_write(path, error) from None
        undo.pop_all()
        for old in filter(None, kept):
            cleanup.callback(old.unlink, missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is written again and again, in the place of the last one.

    A process that is killed meanwhile leaves the last one whole, and beside it at most ``.part`` of
    the next, which takes its place or is removed with it (`remove_file`).

    Raises:
        OutputError: the system refused; the last one is as it was.
    """
    temporary = _part_of(path)
    try:
        temporary.unlink(missing_ok=True)  # not written through, if it is a link
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def remove_file(path: Path) -> None:
    """Remove what `replace_file` wrote, if it is there.

    Raises:
        OutputError: the system refused.
    """
    try:
        path.unlink(missing_ok=True)
        _part_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}") from None


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _check_output(path: Path, inputs: list[Path], seen: set[Path], force: bool) -> None:
    folder = path.parent
    if path.resolve() in seen:
        raise OutputError(f"two outputs would be written to {path}: give them different names")
    seen.add(path.resolve())
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if any(path.resolve() == i.resolve() or _same_file(path, i) for i in inputs):
        raise OutputError(f"{path} is also the input, which is never changed: choose another name")
    if (path.exists() or path.is_symlink()) and not force:
        raise OutputError(
            f"{path} exists already: use --force (force=True) to replace it, or another name"
        )
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}")
    # Asking the system by doing: permissions, read-only mounts and root all answer right.
    with tempfile.TemporaryFile(dir=folder):
        pass


def _write_beside(path: Path, content: bytes, cleanup: contextlib.ExitStack) -> Path:
    # A name is at most 255 bytes, and one of its characters up to four.
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name[:40]}-", suffix=".part", dir=path.parent
    )
    temporary = Path(name)
    cleanup.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~_umask())
    return temporary


def _keep(path: Path, second_name: Path) -> Path | None:
    """Give what stands at `path` a second name, from which it can be put back."""
    if not (path.exists() or path.is_symlink()):
        return None
    try:
        os.link(path, second_name, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without hard links
        shutil.copy2(path, second_name, follow_symlinks=False)
    return second_name


def _put_back(old: Path | None, path: Path) -> None:
    with contextlib.suppress(OSError):  # the first error is the one to report
        if old is None:
            path.unlink(missing_ok=True)
        elif os.path.samestat(old.lstat(), path.lstat()):  # it was not moved away yet
            old.unlink()
        else:
            old.replace(path)


def _cannot_write(path: Path, error: Exception) -> OutputError:
    return OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def _umask() -> int:
    """Return the process's mask, so that a file gets the mode that `open` would have given it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _same_file(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
