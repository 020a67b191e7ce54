"""What the processes of a job tell each other beside statistics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import digits
import numpy as np
import pytest
import torch
from jobs import job, values
from numpy.typing import NDArray

import adaptkit
from adaptkit.distributed import world
from adaptkit.errors import DistributedError
from adaptkit.models import SmallCNN
from adaptkit.pipeline.common import agree, refuse_too_many_bad
from adaptkit.pipeline.opening import Head
from adaptkit.pipeline.scoring import score_and_see

TRANSFORM = adaptkit.Transform(image_size=(8, 8), mean=(0.5,), std=(0.5,), channels=1)


def agree_on(argument: str, files: list[str]) -> str:
    checkpoint: Any = SimpleNamespace(sha256="0" * 64)
    try:
        agree(world(), checkpoint, {argument: Path(files[world().rank])}, {})
    except DistributedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("argument", ["class_shares", "classes"])
def test_files_are_compared_by_what_they_hold(tmp_path: Path, argument: str) -> None:
    files = [tmp_path / name for name in "abc"]
    for path, text in zip(files, ("cat,1\n", "cat,1\n", "cat,2\n"), strict=True):
        path.write_text(text)
    alike, other = ([str(files[0]), str(path)] for path in files[1:])
    assert values(job(2, agree_on, argument, alike)) == ["", ""]
    for said in values(job(2, agree_on, argument, other)):
        assert f"rank 1 differs from rank 0: {argument} of sha256" in said


def skipped(folder: str) -> list[str]:
    loader = adaptkit.image_folder(folder, transform=TRANSFORM)
    for _ in loader.subset(range(5 - world().rank, 0, -2)):  # each its part, from the end
        pass
    refuse_too_many_bad(loader, skip_bad=True)
    return list(loader.skipped)


def test_what_was_skipped_stands_in_the_order_of_the_listing(tmp_path: Path) -> None:
    digits.write(tmp_path / "0.png", torch.zeros(1, 8, 8))
    for number in range(1, 6):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    due = [f"{number}.png" for number in range(1, 6)]
    assert values(job(2, skipped, str(tmp_path))) == [due] * 2


def seen(folder: str) -> NDArray[np.float32]:
    loader = adaptkit.image_folder(folder, transform=TRANSFORM, batch_size=3)
    torch.manual_seed(0)
    _, vectors = score_and_see(SmallCNN(1, 2), loader, Head("classes", 2), most=9, seed=0)
    assert vectors is not None
    return vectors


def test_the_same_images_are_looked_at_where_some_cannot_be_read(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        digits.write(tmp_path / f"{number:02}.png", torch.rand(1, 8, 8, generator=generator))
    for number in (0, 5, 6, 13):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    truth = seen(str(tmp_path))
    for found in values(job(3, seen, str(tmp_path))):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6)
