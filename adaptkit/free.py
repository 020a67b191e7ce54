"""How much main memory is free."""

import contextlib
import os
from pathlib import Path


def free_memory() -> int:
    """Return how many bytes can be used without harm: of the machine, and of a container's limit.

    >>> free_memory() > 0
    True
    """
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
