"""Real processes that torch.distributed joins, started in a moment and gone after it."""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 90.0  # for a whole job, on a machine that does other things too
# One process imports torch, and all others are forked from it before it has threads.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "adaptkit.adaptation"])


@dataclass(frozen=True)
class Ended:
    """How a process of a job ended.

    Args:
        value: what its work returned.
        error: what it raised, as (name of the type, text), if it did.
        code: of its exit; None if it had to be killed at the end.
    """

    value: Any
    error: tuple[str, str] | None
    code: int | None


def job(
    size: int,
    work: Callable[..., Any],
    *arguments: Any,
    timeout: float = 30.0,
    backend: str = "gloo",
) -> list[Ended]:
    """Run ``work(*arguments)`` in `size` processes with a process group.

    Args:
        size: how many processes.
        work: a function at the top of a module.
        arguments: of it.
        timeout: of collective operations, in seconds.
        backend: of the process group.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(size):
            here, there = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_work, args=(there, rank, size, folder, timeout, backend, work, arguments)
            )
            process.start()
            there.close()
            started.append((process, here))
        end = time.monotonic() + SECONDS
        found = []
        for process, here in started:
            value, error = _received(here, end)
            process.join(max(0.0, end - time.monotonic()))
            code = process.exitcode
            if code is None:
                process.kill()
                process.join()
            found.append(Ended(value, error, code))
    return found


def values(ended: list[Ended]) -> list[Any]:
    """Return what all processes returned; none may have failed."""
    for rank, one in enumerate(ended):
        assert one.error is None, f"rank {rank}: {one.error}"
        assert one.code == 0, f"rank {rank} ended with {one.code}"
    return [one.value for one in ended]


def _received(here: Connection, end: float) -> tuple[Any, tuple[str, str] | None]:
    try:
        if here.poll(max(0.0, end - time.monotonic())):
            found: tuple[Any, tuple[str, str] | None] = here.recv()
            return found
    except EOFError:
        pass  # it died without a word, which its exit code says
    return None, None


def _work(
    there: Connection,
    rank: int,
    size: int,
    folder: str,
    timeout: float,
    backend: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), size)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    try:
        there.send((work(*arguments), None))
    except Exception as error:  # noqa: BLE001  the test looks at it
        text = str(error) or traceback.format_exc()
        there.send((None, (type(error).__name__, text)))
    else:
        dist.barrier()
        dist.destroy_process_group()
