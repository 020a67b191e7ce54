"""Freed memory that is used again instead of being handed back to the system each time."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**31 - 1
_USUAL = 32 * 2**20


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Let the C library keep what is freed within the block; afterwards give all of it back.

    glibc asks the system for each block above its threshold (32 MiB at most, by its own adjustment)
    and returns it on free, so that feature maps of a forward always lie in fresh pages, which the
    system has to clear: ResNet-50 in float32 spends a quarter of its processor time on that, and
    estimation, which has most of its blocks alive at once, more. Elsewhere than on glibc and a CPU
    this does nothing.

    The thresholds are the whole process's and cannot be read, so they do not return to what they
    were but to what glibc's adjustment comes to once a block of 32 MiB has been freed.

    Source: mallopt(3), malloc_trim(3).
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MOST)
    libc.mallopt(_M_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # no such handle on this system
        return None
