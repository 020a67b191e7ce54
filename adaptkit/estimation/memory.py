"""How much memory estimation may use."""

import contextlib
import os
from pathlib import Path

import torch

from adaptkit.errors import EstimationError

DEFAULT_SHARE = 0.5  # of what is free when estimation starts


def allowed(memory: int | None, device: torch.device, sharers: int = 1) -> int:
    """Return `memory` in bytes, or by default half of what is free on `device`.

    By default `sharers` processes that compute there part it among them.

    Raises:
        EstimationError: `memory` is not positive.

    >>> allowed(10, torch.device("cpu"))
    10
    """
    if memory is None:
        return int(_free(device) * DEFAULT_SHARE / sharers)
    if memory <= 0:
        raise EstimationError(f"Expected memory to be a positive number of bytes, got {memory}")
    return memory


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return min(_system_free(), _container_free())


def _system_free() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_free() -> int:
    """Return what a container's own limit (cgroup 2) leaves; without one, no bound."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())  # "max" where there is none
        return limit - int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
