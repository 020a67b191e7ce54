"""What the processes of a job tell each other beside statistics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import digits
import pytest
import torch
from jobs import job, values

import adaptkit
from adaptkit.distributed import world
from adaptkit.errors import DistributedError
from adaptkit.pipeline.common import agree, refuse_too_many_bad


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
    transform = adaptkit.Transform(image_size=(8, 8), mean=(0.5,), std=(0.5,), channels=1)
    loader = adaptkit.image_folder(folder, transform=transform)
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
