"""What training scripts store beside weights that is data and no code, though torch refuses it."""

import argparse
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}  # bytes of a number


def allowed() -> AbstractContextManager[object]:
    """Let torch read the arguments of a command (argparse.Namespace) and numpy's numbers.

    Numpy's own functions are not called with what a file says, but ones that know numbers only.
    """
    substitutes: list[Any] = [
        argparse.Namespace,
        (_DType, "numpy.dtype"),
        (_number, "numpy.core.multiarray.scalar"),
        (_number, "numpy._core.multiarray.scalar"),
    ]
    context: AbstractContextManager[object] = torch.serialization.safe_globals(substitutes)
    return context


class _DType:
    """A type of numpy's numbers, as a pickle describes it."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or int(code[1:]) not in _SIZES.get(code[:1], ()):
            raise ValueError(f"expected a type of numbers, got {code!r:.40}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _DType, content: bytes) -> Any:
    return np.frombuffer(content, np.dtype(dtype.order + dtype.code))[0]
