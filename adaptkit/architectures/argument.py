"""From KEY=VALUE, as it is typed, to an argument of an architecture's constructor."""

import ast
import json
import warnings
from contextlib import suppress
from typing import Any

from adaptkit.errors import CheckpointError


def argument(text: str) -> tuple[str, Any]:
    """Return the name and the value that KEY=VALUE stands for.

    The value is read as JSON, else as a literal of Python that JSON could hold, else taken as the
    text that it is.

    Raises:
        CheckpointError: there is no "=", or no name before it.

    >>> argument("width=3"), argument("aux_logits=false"), argument("global_pool=avg")
    (('width', 3), ('aux_logits', False), ('global_pool', 'avg'))
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name.isidentifier():
        raise CheckpointError(
            f"expected KEY=VALUE for the architecture's constructor, got {text[:100]!r}: "
            f"write it as in num_classes=10"
        )
    return name, _value(value.strip())


def _value(text: str) -> Any:
    for read in (_json, _literal):
        with (
            warnings.catch_warnings(),
            suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError),
        ):
            warnings.simplefilter("ignore")  # of odd escapes in what is text anyway
            return read(text)
    return text


def _literal(text: str) -> Any:
    value = ast.literal_eval(text)
    json.dumps(value, allow_nan=False)  # no sets, bytes or such, which no report could tell
    return value


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not of JSON")
