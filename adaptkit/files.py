"""Writing results so that nothing is lost and nothing is left half-written."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from adaptkit.errors import OutputError


def check_outputs(outputs: Iterable[Path], *, inputs: Iterable[Path] = (), force: bool) -> None:
    """Refuse, before any work is done, outputs that could not or should not be written.

    Raises:
        OutputError: an output is one of the inputs, stands twice, is a folder, exists without
            `force`, or lies in a folder that is missing or not writable.
    """
    inputs, seen = list(inputs), set[Path]()
    for path in outputs:
        folder = path.parent
        if path.resolve() in seen:
            raise OutputError(f"two outputs would be written to {path}: give them different names")
        seen.add(path.resolve())
        if path.is_dir():
            raise OutputError(f"{path} is a folder: name a file in it")
        if any(path.resolve() == i.resolve() or _same_file(path, i) for i in inputs):
            raise OutputError(
                f"{path} is also the input, which is never changed: choose another name"
            )
        if path.exists() and not force:
            raise OutputError(
                f"{path} exists already: use --force (force=True) to replace it, or another name"
            )
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: there is no folder {folder}")
        try:
            # Asking the system by doing: permissions, read-only mounts and root all answer right.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files or none: temporary files beside them, flushed to disk, then moved into place.

    Raises:
        OutputError: the system refused (disk full, permission); nothing of `contents` is in place.
    """
    path = Path()
    with contextlib.ExitStack() as undo:
        try:
            moves = []
            for path, content in contents.items():
                temporary = _write_beside(path, content, undo)
                moves.append((temporary, path))
            for temporary, path in moves:
                temporary.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _write_beside(path: Path, content: bytes, undo: contextlib.ExitStack) -> Path:
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name[:80]}-", suffix=".part", dir=path.parent
    )
    temporary = Path(name)
    undo.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~_umask())
    return temporary


def _umask() -> int:
    """Return the process's mask, so that a file gets the mode that `open` would have given it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _same_file(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
