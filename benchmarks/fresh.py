"""Measurements in a process of their own, so that none inherits another's memory or caches."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device

MIB = 2**20


def in_fresh_process(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENTS…`; return the JSON object of its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_fresh_job(processes: int, module: str, *arguments: object) -> list[dict[str, Any]]:
    """Run `python -m MODULE ARGUMENTS…` in processes of one thread that torchrun starts and joins.

    Returns the JSON of the last line, which one of them prints.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", module, *map(str, arguments)]
    done = subprocess.run(  # noqa: S603
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Run `work` once: seconds, processor seconds, and by how many MiB memory rose at its worst.

    The memory is the process's resident memory, or the GPU's where that computes.
    """
    gpu = device().type == "cuda"
    before = _start_counting(gpu)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_SELF)
    peak = torch.cuda.max_memory_allocated() / MIB if gpu else _resident("VmHWM")
    return {
        "seconds": round(seconds, 3),
        "user s": round(now.ru_utime - usage.ru_utime, 2),
        "system s": round(now.ru_stime - usage.ru_stime, 2),
        "peak MiB": round(max(peak - before, 0.0), 1),
    }


def _start_counting(gpu: bool) -> float:
    """Forget earlier peaks; return the memory that is in use, in MiB."""
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    return _resident("VmRSS")


def _resident(field: str) -> float:
    """Return VmRSS or VmHWM in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
