"""image_folder(): batches, what is left out of them, and workers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adaptkit import DataError, ImageLoader, Transform, image_folder
from adaptkit.data import loader as loader_module

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


def test_the_global_random_state_is_left_alone(root: Path) -> None:
    before = torch.get_rng_state()
    list(image_folder(root, transform=GREY))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_worker_that_dies_is_a_clear_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "decode", lambda _: os._exit(1))
    loader = image_folder(root, transform=GREY, workers=1)
    with pytest.raises(DataError, match="a process that decodes images ended unexpectedly"):
        list(loader)


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
