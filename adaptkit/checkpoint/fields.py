"""What a file of format adaptkit/1 says beside its tensors, held to that format."""

import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adaptkit import __version__
from adaptkit.checkpoint.content import FORMAT, STATE_DICT
from adaptkit.errors import AdaptkitError, CheckpointError, few, shown
from adaptkit.layers.adain import Style
from adaptkit.transform import Transform

_TYPES: dict[str, tuple[type, ...]] = {
    "arch": (str,),
    "arch_kwargs": (dict,),
    "classes": (list, tuple),
    "transform": (dict,),
    "adapted": (dict,),
    "style": (dict,),
    "calibration": (str,),
}


def check(path: Path, tree: Mapping[str, Any]) -> None:
    """Hold a file that says which format it is of to that format.

    Raises:
        CheckpointError: it is of another, or a field is not of its type.
    """
    kind = tree.get("format")
    if kind != FORMAT:
        if re.fullmatch(r"adaptkit/\d+", str(kind)):
            raise CheckpointError(
                f"{path} is of format {kind}, and this adaptkit ({__version__}) reads {FORMAT}: "
                f"install a newer adaptkit"
            )
        raise CheckpointError(
            f"{path} is of an unknown format {shown(reprlib.repr(kind))}; expected {FORMAT}"
        )
    if STATE_DICT not in tree:
        raise CheckpointError(f"{path}: expected a field 'state_dict', got {few(list(tree))}")
    check_types(path, tree)


def check_types(path: Path, fields: Mapping[str, Any]) -> None:
    """Hold the fields that there are to their types.

    Raises:
        CheckpointError: a field is not of its type.
    """
    for name, types in _TYPES.items():
        value = fields.get(name)
        if value is not None and not isinstance(value, types):
            raise CheckpointError(
                f"{path}: expected '{name}' to be a {types[0].__name__}, got {type(value).__name__}"
            )
    for name in ("arch_kwargs", "transform", "adapted"):
        try:
            json.dumps(fields.get(name))
        except (TypeError, ValueError, RecursionError):
            raise CheckpointError(f"{path}: expected '{name}' to be what JSON can hold") from None
    if not all(isinstance(name, str) for name in fields.get("arch_kwargs") or ()):
        raise CheckpointError(f"{path}: expected the keys of 'arch_kwargs' to be names")
    if not all(isinstance(name, str) for name in fields.get("classes") or ()):
        raise CheckpointError(f"{path}: expected 'classes' to be a list of names")
    _check_style(path, fields.get("style"))


def transform_of(path: Path, fields: Mapping[str, Any]) -> Transform | None:
    """Return the transform that a file states, or None.

    Raises:
        CheckpointError: it states one that cannot be.
    """
    stated = fields.get("transform")
    if not stated:
        return None
    try:
        return Transform.from_dict(stated)
    except (AdaptkitError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_style(path: Path, style: Any) -> None:
    if style is None:
        return
    try:
        Style(*(torch.tensor(style[name], dtype=torch.float32) for name in ("mean", "std")))
    except (KeyError, TypeError, ValueError, RuntimeError, AdaptkitError):
        raise CheckpointError(
            f"{path}: expected 'style' to hold 'mean' and 'std', a number for each channel"
        ) from None
