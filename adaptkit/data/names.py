"""The names of a model's outputs, from a file."""

from pathlib import Path

from adaptkit.errors import DataError

_MOST_BYTES = 2**24


def class_names(path: str | Path) -> tuple[str, ...]:
    """Read the names of a model's outputs from a file, one a line, in order.

    Raises:
        DataError: it cannot be read, is empty, or a name is missing or stands twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is no list of class names: it is larger than 16 MiB")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the class names in {path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is no list of class names: expected UTF-8, one a line") from None
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}: expected class names, one a line, each another")
    if not names:
        raise DataError(f"{path} is empty: expected class names, one a line")
    return names
