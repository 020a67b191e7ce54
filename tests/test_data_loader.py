"""image_folder(): batches, what is left out of them, and workers."""

import copy
import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adaptkit import DataError, ImageLoader, Transform, image_folder
from adaptkit.data import list_images
from adaptkit.data import listing as listing_module
from adaptkit.data import open as open_data

GREY = Transform(image_size=(4, 4), channels=1, mean=(0.0,), std=(1.0,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five images; the pixel value of image i of class c is 100 c + i."""
    for c, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (4, 4), 100 * c + i).save(tmp_path / name / f"{i}.png")
    return tmp_path


def values(batches: Any) -> list[int]:
    images = [b[0] if isinstance(b, (tuple, list)) else b for b in batches]
    return [round(float(x) * 255) for x in torch.cat(images)[:, 0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_with_labels_in_the_order_of_names(root: Path, workers: int) -> None:
    loader = image_folder(root, transform=GREY, classes=("a", "b"), batch_size=4, workers=workers)
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert batches[0][0].dtype == torch.float32
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 5 + [1] * 5
    assert values(batches) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert values(loader) == values(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_left_out_and_named(root: Path, workers: int) -> None:
    for name in ("a/0.png", "b/4.png"):
        (root / name).write_bytes(b"broken")
    loader = image_folder(root, transform=GREY, batch_size=1, workers=workers)
    assert values(loader) == [1, 2, 3, 4, 100, 101, 102, 103]
    assert loader.skipped == dict.fromkeys(
        ["a/0.png", "b/4.png"], "not an image that can be identified"
    )


def test_a_subset_loads_only_its_images_and_shares_what_was_skipped(root: Path) -> None:
    (root / "b" / "0.png").write_bytes(b"broken")
    loader = image_folder(root, transform=GREY, batch_size=2)
    subset = loader.subset([9, 0, 5]).subset([2, 1])
    assert isinstance(subset, ImageLoader)
    assert values(subset) == [0]
    assert list(loader.skipped) == ["b/0.png"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory", [None, 3 * 16, 0])
def test_an_image_is_decoded_once(root: Path, workers: int, memory: int | None) -> None:
    (root / "a" / "2.png").write_bytes(b"broken")
    listing = list_images(root, classes=("a", "b"))
    loader = ImageLoader(listing, GREY, batch_size=3, workers=workers, memory=memory)
    first = values(loader.subset([9, 2, 1]))
    expected = list(loader)
    loader.skipped.clear()
    shutil.rmtree(root)
    assert first == [104, 1]
    for (x, y), (x2, y2) in zip(loader, expected, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert list(loader.skipped) == ["a/2.png"]
    assert loader.kept() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert values(loader.subset([9, 2, 0, 9]).subset([0, 1, 2, 3])) == [104, 0, 104]
    brighter = loader.prepared_by(GREY.then(torch.ones(1), torch.ones(1)))
    assert values(brighter) == [value + 255 for value in values(expected)]
    image = loader.picture(5)
    assert image is not None
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("L", (4, 4), 100)
    assert loader.picture(2) is None


def test_an_image_is_decoded_again_for_other_pixels(root: Path) -> None:
    loader = image_folder(root, transform=GREY)
    list(loader)
    wide = loader.prepared_by(Transform(image_size=(4, 6), channels=1, mean=(0.0,), std=(1.0,)))
    assert next(iter(wide)).shape == (10, 1, 4, 6)


def test_where_nothing_can_be_kept_images_are_read_each_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100, free=9))
    loader = ImageLoader(list_images(root), GREY, batch_size=3, memory=16)
    expected = values(loader)
    assert values(loader) == expected
    (root / "a" / "0.png").unlink()  # the one that is in memory
    (root / "a" / "1.png").unlink()
    assert values(loader) == [value for value in expected if value != 1]


def test_images_are_decoded_ahead_by_threads_that_end(root: Path) -> None:
    before = threading.active_count()
    loader = image_folder(root, transform=GREY, batch_size=1)
    batches = iter(loader)
    assert values([next(batches)]) == [0]
    assert threading.active_count() > before
    del batches
    gc.collect()
    assert threading.active_count() == before
    assert values(loader) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(root: Path, workers: int) -> None:
    before = torch.get_rng_state()
    list(image_folder(root, transform=GREY, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


forked = pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info >= (3, 14),
    reason="a worker sees what a test replaced only where it is forked",
)


@forked
@pytest.mark.parametrize(
    "end", [lambda *_: os._exit(1), lambda *_: os.kill(os.getpid(), signal.SIGKILL)]
)
def test_a_worker_that_dies_is_a_clear_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    monkeypatch.setattr(listing_module, "decode", end)
    loader = image_folder(root, transform=GREY, workers=1)
    with pytest.raises(DataError, match="a process that decodes images ended unexpectedly"):
        list(loader)


@forked
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_thread_or_a_living_worker_keeps_its_own_words(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def mistaken(*_: Any) -> Image.Image:
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(listing_module, "decode", mistaken)
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        list(image_folder(root, transform=GREY, workers=workers))


@pytest.mark.slow
@forked
def test_where_shared_memory_is_full_batches_come_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    loader = image_folder(root, transform=GREY, classes=("a", "b"), batch_size=4, workers=2)
    loader.timeout = 60  # else the test would hang where it should fail
    assert values(loader) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert torch.cat([y for _, y in loader]).tolist() == [0] * 5 + [1] * 5


def test_leaving_early_ends_the_workers(root: Path) -> None:
    before = set(multiprocessing.active_children())
    batches = iter(image_folder(root, transform=GREY, batch_size=1, workers=2))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del batches
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_a_batch_from_a_worker_costs_few_open_files(root: Path) -> None:
    for i in range(100):
        Image.new("L", (4, 4)).save(root / "a" / f"more-{i}.png")
    loader = image_folder(root, transform=GREY, batch_size=100, workers=1)
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    # What one asks of the loader's own batches, before `ImageLoader` unpacks them.
    held = DataLoader.__iter__(loader)
    first = next(held)
    assert len(list(open_files.iterdir())) - before < 50
    assert len(first.samples) == 100


def test_what_goes_to_a_worker_can_be_pickled(root: Path) -> None:
    loader = image_folder(root, transform=GREY)
    again = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    images = again[1]([again[0][i] for i in (0, 5)]).samples
    assert images[:, 0, 0, 0].tolist() == [0, 100]


def test_batches_of_which_nothing_can_be_read_are_not_yielded(root: Path) -> None:
    for path in (root / "a").iterdir():
        path.unlink()
        path.symlink_to("vanished")
    loader = image_folder(root, transform=GREY, classes=("a", "b"), batch_size=5)
    ((images, labels),) = loader
    assert len(images) == 5
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1] * 5
    assert set(loader.skipped.values()) == {"not there any more"}


def test_an_image_too_narrow_to_resize_is_left_out_and_named(root: Path) -> None:
    Image.new("L", (1, 60000)).save(root / "a" / "0.png")
    crop = Transform((224, 224), 1, (0.0,), (1.0,), resize="crop")
    loader = image_folder(root, transform=crop, batch_size=10)
    assert [len(batch) for batch in loader] == [9]
    assert "too narrow to resize: 1 x 60000 pixels" in loader.skipped["a/0.png"]


def test_arguments_out_of_range(root: Path) -> None:
    with pytest.raises(DataError, match="Expected a transform, got None"):
        image_folder(root, transform=None)
    with pytest.raises(DataError, match="batch_size of 1 or more"):
        image_folder(root, transform=GREY, batch_size=0)
    with pytest.raises(DataError, match="workers of 0 or more"):
        image_folder(root, transform=GREY, workers=-1)


def test_pixels_are_what_the_transform_says(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    for path in root.rglob("*.png"):
        path.unlink()
    Image.fromarray(pixels).save(root / "a" / "x.png")
    transform = Transform(image_size=(4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    (batch,) = image_folder(root, transform=transform)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(batch[0].permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)


def test_sizes_come_from_the_files(root: Path) -> None:
    Image.new("RGB", (7, 3)).save(root / "a" / "0.png")
    (root / "a" / "1.png").write_bytes(b"not an image")
    loader = image_folder(root, transform=GREY, classes=("a", "b"))
    assert loader.sizes() == [(7, 3)] + [(4, 4)] * 8
    assert loader.subset([0]).sizes() == [(7, 3)]


@pytest.mark.parametrize(("memory", "held"), [(None, 10), (50, 3)])
def test_memory_bounds_what_is_kept_and_a_file_has_the_rest(
    root: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None, held: int
) -> None:
    loader = open_data(root, transform=GREY, memory=memory, batch_size=4)
    first = values(loader)
    assert len(loader._cache._held) == held
    monkeypatch.setattr(listing_module, "decode", None)  # nothing is decoded again
    assert values(loader) == first == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


def test_what_lies_in_a_file_is_read_by_any_thread_and_stays_behind_in_copies(root: Path) -> None:
    loader = open_data(root, transform=GREY, memory=0, batch_size=3)
    due = values(loader)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: values(loader), range(40)):
            assert found == due
    for again in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert values(again) == due


def test_how_it_is_read_is_part_of_what_it_is(root: Path) -> None:
    fast = open_data(root, transform=GREY, fast_jpeg=True)
    assert fast.fingerprint() != open_data(root, transform=GREY).fingerprint()
