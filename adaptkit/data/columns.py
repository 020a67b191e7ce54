"""A file of rows and named columns, and what ours mean: path, label, domain, weight."""

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptkit.data.labels import NONE, Partly, as_indices
from adaptkit.data.place import Place
from adaptkit.errors import DataError, DependencyError, few

SUFFIXES = (".csv", ".tsv", ".parquet")
PATH = "path"
KNOWN = ("label", "domain", "weight")
_UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*")  # as pandas calls a column without a name


class Known(NamedTuple):
    """What the columns of `KNOWN` say, one a row, as `Listing` has it."""

    labels: list[int] | None
    classes: list[str] | None
    note: str
    domains: list[str] | None
    weights: list[float] | None
    partly: Partly | None


def read_columns(path: Path) -> Any:
    """Read a table as a pandas DataFrame, its text as it stands: "NA" is a name, 007 is no 7.

    Raises:
        DataError: it cannot be read, has no rows, or a column stands twice.
        DependencyError: it is a Parquet file and nothing is installed that reads it.
    """
    frame = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    frame.columns = [str(name).strip() for name in frame.columns]
    names = list(frame.columns)  # pandas calls a second one "path.1"
    twice = [name for name in (PATH, *KNOWN) if f"{name}.1" in names]
    if twice := twice + [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{path}: column {few(twice)} stands there more than once")
    if not len(frame):
        raise DataError(f"{path} has no rows")
    if all(map(_is_number, names)):
        raise DataError(f"{path}: expected the first line to name the columns, got numbers")
    return frame


def known_columns(
    frame: Any, path: Place, *, classes: Any = None, outputs: int | None = None
) -> Known:
    """Return what the columns label, domain and weight say, where they are there.

    Raises:
        DataError: a label is no class of the model's, a domain is missing, or a weight is not a
            number of 0 or more.
    """
    found = NONE
    if "label" in frame:
        found = as_indices(texts(frame["label"]), path, classes=classes, outputs=outputs)
    domains = texts(frame["domain"]) if "domain" in frame else None
    if domains and "" in domains:
        raise DataError(f"{path}: {_row(domains.index(''))} has no domain")
    weights = as_weights(numbers(frame["weight"]), path) if "weight" in frame else None
    return Known(found.labels, found.classes, found.note, domains, weights, found.partly)


def as_weights(values: np.ndarray, where: object) -> list[float]:
    """Return weights of samples, checked.

    Raises:
        DataError: one is not a finite number of 0 or more, or all are 0.
    """
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise DataError(
            f"{where}: the weight in {_row(int(bad.argmax()))} is not a number of 0 or more"
        )
    if not values.any():
        raise DataError(f"{where}: all weights are 0")
    # Only their ratios matter, and their squares must not leave the range of numbers.
    found: list[float] = (values.astype(float) / values.max()).tolist()
    return found


def texts(column: Any) -> list[str]:
    """Return a column as text, "" where there is none; bytes, which Parquet may have, as UTF-8."""
    values = column.astype(object).where(column.notna(), "").map(_as_text).str.strip()
    found: list[str] = values.tolist()
    return found


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def numbers(column: Any) -> np.ndarray:
    """Return a column as float64, NaN where there is no number."""
    import pandas as pd

    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def numbering(frame: Any) -> list[str]:
    """Return the first columns that have no name and only number the rows, as pandas saves them.

    >>> import pandas as pd
    >>> numbering(pd.DataFrame({"Unnamed: 0": ["7", "3"], "a": ["1", "2"]}))
    ['Unnamed: 0']
    """
    found: list[str] = []
    for name in frame.columns[:-1]:
        values = numbers(frame[name])
        whole = bool((values == np.floor(values)).all() and (values >= 0).all())
        if not _UNNAMED.fullmatch(name) or not whole or len(np.unique(values)) < len(values):
            break
        found.append(name)
    return found


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _row(number: int) -> str:
    """Name a row as a user counts them: the first below the head is 1."""
    return f"row {number + 1:,}"


def _text(path: Path) -> Any:
    import pandas as pd

    try:
        with warnings.catch_warnings():  # of rows that are longer than the first line
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep="\t" if path.suffix.lower() == ".tsv" else _separator(path),
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
            )
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except pd.errors.ParserWarning:
        raise DataError(f"{path}: rows have more columns than the first line names") from None
    except (ValueError, pd.errors.ParserError) as error:  # ValueError: not UTF-8
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as a table: {reason}") from None


def _separator(path: Path) -> str:
    """Return what parts a CSV file's columns: a comma, or a semicolon as some languages have it."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.readline(2**16)
    return ";" if ";" in head and "," not in head else ","


def _parquet(path: Path) -> Any:
    import pandas as pd

    try:
        import pyarrow
    except ImportError:
        raise DependencyError(
            f'{path}: Parquet files need pyarrow: pip install "adaptkit[parquet]"'
        ) from None
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path}: {error.strerror or ' '.join(str(error).split())[:160]}")
