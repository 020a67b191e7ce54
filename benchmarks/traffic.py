"""What a process hands to torch.distributed, counted where it does: operations, bytes, waiting."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor

from adaptkit.distributed.meeting import Meeting

# torch's gathers and broadcasts of objects come down to these, of a size and of the pickled bytes.
_OPERATIONS = ("all_reduce", "all_gather", "broadcast")


@dataclass
class Traffic:
    """What one process handed over.

    Args:
        operations: collective ones on tensors; to gather objects takes two.
        all_reduces: those of them that add up.
        bytes_all_reduced: of the tensors handed to those.
        bytes_handed: of the tensors handed to all; of a broadcast, its size on every process.
        waited: seconds within them, and until the other processes came.
    """

    operations: int = 0
    all_reduces: int = 0
    bytes_all_reduced: int = 0
    bytes_handed: int = 0
    waited: float = 0.0


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what this process hands over within a block."""
    traffic = Traffic()

    def counting(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counts(*args: Any, **options: Any) -> Any:
            handed = args[1] if name == "all_gather" else args[0]
            assert isinstance(handed, Tensor)  # noqa: S101  torch's own calls pass them so
            traffic.operations += 1
            traffic.bytes_handed += handed.nbytes
            if name == "all_reduce":
                traffic.all_reduces += 1
                traffic.bytes_all_reduced += handed.nbytes
            return _timed(traffic, operation, *args, **options)

        return counts

    wait = Meeting.wait
    with ExitStack() as undo:
        for name in _OPERATIONS:
            wrapped = counting(name, getattr(dist, name))
            for module in (dist, dist.distributed_c10d):
                undo.enter_context(patch.object(module, name, wrapped))
        undo.enter_context(patch.object(Meeting, "wait", lambda here: _timed(traffic, wait, here)))
        yield traffic


def _timed(traffic: Traffic, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    start = time.perf_counter()
    try:
        return work(*args, **options)
    finally:
        traffic.waited += time.perf_counter() - start
