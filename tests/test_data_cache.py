"""PixelCache: what is kept where, and what becomes of the file."""

import io
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptkit.data.cache import PixelCache

SHAPE = (3, 4, 5)
BYTES = 60


def image(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("memory", [0, BYTES - 1, BYTES, 5 * BYTES, 100 * BYTES, None])
def test_pixels_come_back_from_memory_and_from_the_file(temporary: Path, memory: int) -> None:
    cache = PixelCache(SHAPE, memory)
    order = [9, 0, 4, 7, 1, 12]
    for number in order:
        cache.put(number, image(number))
        cache.put(number, image(number + 100))  # the first one counts
    for number in [*reversed(order), *order]:
        pixels = cache.get(number)
        assert pixels is not None
        assert torch.equal(pixels, image(number))
    assert cache.get(5) is None
    assert 5 not in cache
    assert list(temporary.iterdir()) == []  # the file has no name


def test_what_is_dropped_leaves_room_for_others(temporary: Path) -> None:
    cache = PixelCache(SHAPE, 2 * BYTES)
    for number in range(5):
        cache.put(number, image(number))
    cache.fail(5, "broken")
    cache.drop([1, 2, 4, 5, 6])
    assert [number in cache for number in range(7)] == [n in (0, 3) for n in range(7)]
    assert not cache.failed
    for number in range(10, 14):
        cache.put(number, image(number))
    assert cache._file is not None
    assert os.fstat(cache._file.fileno()).st_size == 4 * BYTES  # two of them where others were
    for number in (0, 3, 10, 11, 12, 13):
        pixels = cache.get(number)
        assert pixels is not None
        assert torch.equal(pixels, image(number))


def test_a_disk_that_is_nearly_full_is_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frees = iter([1000, 100 + BYTES, 100 + BYTES - 1])
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(total=1000, free=next(frees))
    )
    cache = PixelCache(SHAPE, BYTES)
    for number in range(6):
        cache.put(number, image(number))
    assert [number in cache for number in range(6)] == [True, True, True, False, False, False]


def test_a_write_that_fails_is_no_error(temporary: Path) -> None:
    class Broken(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError("no space left on device")

        def readinto(self, _: Any) -> int:
            raise OSError("input/output error")

    cache = PixelCache(SHAPE, 0)
    cache.put(0, image(0))
    cache._file = Broken()
    cache.put(1, image(1))
    assert 1 not in cache
    assert cache.get(0) is None  # nor is one that is lost
    assert 0 not in cache


def test_nowhere_to_write_is_no_error(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    cache = PixelCache(SHAPE, BYTES)
    cache.put(0, image(0))
    cache.put(1, image(1))
    assert (0 in cache, 1 in cache) == (True, False)
