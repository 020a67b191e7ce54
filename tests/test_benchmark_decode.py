"""The benchmark of decoding, on a few small files: what is compared, and what rows come to."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from adaptkit import Transform
from benchmarks import decode, photographs, tables
from benchmarks.images import MissingDataError


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two large pictures, and what is none: a small one, a link and a drawing."""
    folder = tmp_path / "backgrounds"
    (folder / "Flow").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (
        ("a", (300, 200)),
        ("b", (240, 400)),
        ("c", (199, 400)),
        ("Flow/d", (300, 300)),
    ):
        noise = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    (folder / "e.jpg").symlink_to(folder / "a.jpg")
    monkeypatch.setattr(photographs, "_FOLDERS", (folder, tmp_path / "missing"))
    monkeypatch.setattr(photographs, "LARGE", (200, 150))
    return [folder / "a.jpg", folder / "b.jpg"]


def test_photographs_are_large_and_no_drawings(
    large: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert photographs.large() == large
    monkeypatch.setattr(photographs, "_FOLDERS", ())
    with pytest.raises(MissingDataError, match="apt-get install"):
        photographs.large()


def test_pieces_are_of_one_size_in_two_folders_and_unlike(
    large: list[Path], tmp_path: Path
) -> None:
    photographs.write_large(tmp_path / "out", 5, large)
    files = sorted((tmp_path / "out").rglob("*.jpg"))
    names = [path.relative_to(tmp_path / "out").as_posix() for path in files]
    assert names == ["a/000000.jpg", "a/000002.jpg", "a/000004.jpg", "b/000001.jpg", "b/000003.jpg"]
    pieces = [Image.open(path) for path in files]
    assert {piece.size for piece in pieces} == {(200, 150)}
    assert len({piece.tobytes() for piece in pieces}) == 5


def test_predictions_are_compared_with_those_on_whole_images(
    large: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    crop = Transform((32, 32), resize="crop", resize_size=36)
    monkeypatch.setattr(decode, "published", lambda: (net.eval(), crop))
    photographs.write_large(tmp_path / "out", 4, large)
    frame = pd.DataFrame(decode.agreement(sorted((tmp_path / "out").rglob("*.jpg"))))
    assert frame["method"].tolist() == [
        "whole",
        "at least 1 x",
        "at least 2 x",
        "whole, 20% of values ±1",
    ]
    assert frame["agree"].iloc[0] == 1
    assert frame["logits moved"].iloc[0] == frame["pixels moved"].iloc[0] == 0
    assert 0 < frame["pixels moved"].iloc[2] <= frame["pixels moved"].iloc[1]
    assert frame["pixels moved"].iloc[3] == pytest.approx(0.2, abs=0.02)
    table = decode.agreements(frame)
    assert table["predictions agree, %"].iloc[0] == 100


def test_figures_of_two_sets_of_predictions() -> None:
    expected = torch.tensor([[9.0, 0, 0], [0, 1, 0], [0.1, 0, 0], [0, 0, 9.0]])
    logits = torch.tensor([[9.0, 0, 0], [0, 1, 0], [0, 0.1, 0], [0, 0, 9.0]])
    pixels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    found = decode.compared(pixels + 2, pixels, logits, expected)
    assert (found["agree"], found["agree where sure"], found["sure"]) == (0.75, 1.0, 3)
    assert found["pixels moved"] == 2
    moved = np.sqrt(2 * 0.1**2 / 3) / np.std([0.1, 0, 0], ddof=1) / 4
    assert found["logits moved"] == pytest.approx(moved, rel=1e-5)


COMMANDS = (*decode.SCRIPTS, *decode.ADAPTKIT, decode.ADAPTS)


def raced() -> pd.DataFrame:
    seconds = dict(zip(COMMANDS, (6.0, 9.0, 3.0, 4.5, 2.0, 1.0, 9.0), strict=True))
    return pd.DataFrame(
        [
            {"case": "race", "method": method, "round": number, "seconds": value * slow}
            for number, slow in ((1, 1.0), (2, 5.0), (3, 2.0))
            for method, value in seconds.items()
        ]
    ).assign(samples=20, **{"CPU seconds": 1.0})


def test_the_table_has_the_median_of_each_rounds_ratio() -> None:
    table = decode.summary(raced())
    assert table["seconds"].tolist() == [12, 18, 6, 9, 4, 2, 18]
    assert table["times as fast as update_bn on as many"].tolist() == [1, 0.67, 2, 1.33, 3, 6, 0.67]
    assert table["times as fast as update_bn on all"].tolist() == [1.5, 1, 3, 2, 4.5, 9, 1]
    assert {"decode", "decode-agreement"} <= set(tables.TABLES)


def test_the_figure_has_a_row_a_command() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = decode.figure(raced()).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [*COMMANDS]
    assert len(axes.lines) == 7


@pytest.mark.slow
def test_whole_commands_see_the_same_images(large: list[Path], tmp_path: Path) -> None:
    photographs.write_large(tmp_path / "out", 6, large)
    frame = pd.DataFrame(decode.race(tmp_path / "out", rounds=1, samples=4))
    assert frame["method"].tolist() == [*COMMANDS]
    same = frame["method"] != decode.ADAPTS  # which has another source
    assert frame.loc[same, "accuracy before"].nunique() == 1
    assert (frame[["seconds", "CPU seconds"]] > 0).all(axis=None)


def test_the_accuracy_is_read_of_either_output() -> None:
    rows = [{"metric": "accuracy", "scope": "all", "before": 0.25}]
    assert decode._accuracy_before(json.dumps({"rows": rows})) == 0.25
    assert decode._accuracy_before(json.dumps({"before": 0.5, "after": 1.0})) == 0.5
