"""Images that were decoded, kept as pixels while a run lasts: in memory, beyond it in a file."""

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Hashable, Iterable
from typing import IO

import numpy as np
import torch
from torch import Tensor

from adaptkit.free import free_memory
from adaptkit.launched import launched

_SHARE = 0.25  # of the memory that is free when the first image comes, for all processes of a job
_LEFT = 0.1  # of a disk, which is never filled further


class PixelCache:
    """Pixels by what tells their image from others, all of one shape; or why an image has none.

    What memory does not hold goes into a temporary file, which has no name: it is gone with its
    process, however that ends. Where the disk has little room, or there is none to write to, what
    comes later is not kept.

    Args:
        shape: (C, H, W) of the pixels, uint8.
        memory: bytes that they may take in memory; by default a quarter of what is free when the
            first one comes.

    >>> cache = PixelCache((1, 2, 2))
    >>> cache.put(7, torch.ones(1, 2, 2, dtype=torch.uint8))
    >>> cache.fail(8, "broken")
    >>> 7 in cache, 8 in cache, 9 in cache, cache.failed
    (True, True, False, {8: 'broken'})
    >>> cache.get(7).sum().item()
    4
    >>> cache.drop([7, 8, 9])
    >>> 7 in cache, 8 in cache
    (False, False)
    """

    def __init__(self, shape: tuple[int, ...], memory: int | None = None) -> None:
        self.failed: dict[Hashable, str] = {}
        self._shape = shape
        self._bytes = int(np.prod(shape, dtype=np.int64))
        self._given = self._memory = memory
        self._held: dict[Hashable, Tensor] = {}
        self._slots: dict[Hashable, int] = {}  # where in the file, in images
        self._spare: list[int] = []  # slots of what was dropped
        self._written = 0
        self._file: IO[bytes] | None = None
        self._full = False
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[tuple[int, ...], int | None]]:
        """Leave behind what is kept: a copy, as in another process, keeps its own."""
        return PixelCache, (self._shape, self._given)

    def __contains__(self, image: Hashable) -> bool:
        return image in self._held or image in self._slots or image in self.failed

    def fail(self, image: Hashable, reason: str) -> None:
        """Remember why an image cannot be read."""
        self.failed[image] = reason

    def drop(self, images: Iterable[Hashable]) -> None:
        """Forget what is known of some images, so that there is room for others."""
        with self._lock:
            for image in images:
                self.failed.pop(image, None)
                self._held.pop(image, None)
                if image in self._slots:
                    self._spare.append(self._slots.pop(image))
                    self._full = False

    def put(self, image: Hashable, pixels: Tensor) -> None:
        """Keep an image's pixels if there is room; they must not be changed afterwards."""
        # A process that was forked reads on; it would write where this one does.
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._put(image, pixels)

    def _put(self, image: Hashable, pixels: Tensor) -> None:
        if image in self:
            return
        if self._memory is None:
            self._memory = int(_SHARE * free_memory() / launched())
        if (len(self._held) + 1) * self._bytes <= self._memory:
            self._held[image] = pixels
        elif not self._full:
            self._full = not self._write(image, pixels)

    def get(self, image: Hashable) -> Tensor | None:
        """Return an image's pixels, uint8 of `shape`; None where they are not kept."""
        if image in self._held:
            return self._held[image]
        if image not in self._slots or self._file is None:
            return None
        pixels = torch.empty(self._shape, dtype=torch.uint8)
        try:
            # At its place, whatever other threads do.
            at = self._slots[image] * self._bytes
            whole = os.preadv(self._file.fileno(), [pixels.numpy().data], at) == self._bytes
        except OSError:
            whole = False
        if not whole:
            self._slots.pop(image, None)  # whoever asked reads the image itself again
        return pixels if whole else None

    def _write(self, image: Hashable, pixels: Tensor) -> bool:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  as long as this
                weakref.finalize(self, self._file.close)
            disk = shutil.disk_usage(tempfile.gettempdir())
            if not self._spare and disk.free - self._bytes < _LEFT * disk.total:
                return False
            slot = self._spare.pop() if self._spare else self._written
            at = slot * self._bytes
            whole = os.pwrite(self._file.fileno(), pixels.numpy().data, at) == self._bytes
        except OSError:
            return False
        if whole:
            self._slots[image] = slot
            self._written = max(self._written, slot + 1)
        return whole
