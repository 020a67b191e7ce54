"""Manifests and tables: what their columns say, and what is wrong with them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from adaptkit import DataError, DependencyError, Transform
from adaptkit.data import listed, shape_of
from adaptkit.data import open as open_data

GREY = Transform(image_size=(4, 4), channels=1, mean=(0.0,), std=(1.0,))
CLASSES = ("cat", "NA", "007")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images a to f in two folders; the pixel value of the i-th is 40 i."""
    for i, name in enumerate("abcdef"):
        folder = tmp_path / "images" / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 40 * i).save(folder / f"{name}.png")
    return tmp_path


ROWS = {
    "path": ["images/even/a.png", "images/odd/d.png", "images/odd/b.png"],
    "label": ["NA", "007", "cat"],
    "domain": ["north", "south", "north"],
    "weight": [1, 0.5, 2],
    "remark": ["x", "y", "z"],
}


def write(path: Path, rows: dict[str, Any]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ";" if "semi" in path.name else ","
        frame.to_csv(path, index=False, sep=separator)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "semi.csv", "m.parquet", "M.CSV"])
def test_a_manifest_names_images_and_says_what_they_are(root: Path, name: str) -> None:
    loader = open_data(write(root / name, ROWS), transform=GREY, classes=CLASSES, batch_size=2)
    listing = loader.listing
    assert [path.as_posix() for path in listing.paths] == ROWS["path"]
    assert listing.labels == [1, 2, 0]
    assert listing.classes == list(CLASSES)
    assert listing.domains == ROWS["domain"]
    assert listing.weights == [0.5, 0.25, 1.0]  # only the ratios matter
    batches = list(loader)
    pixels = torch.cat([batch["input"] for batch in batches])[:, 0, 0, 0] * 255
    assert pixels.round().tolist() == [0, 120, 40]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [1, 2, 0]
    weight = loader.weight
    assert weight is not None
    assert torch.cat([weight(batch) for batch in batches]).tolist() == [0.5, 0.25, 1]


@pytest.mark.parametrize(
    ("labels", "classes", "outputs", "expected", "note"),
    [
        (["0", "2", "1"], None, 3, [0, 2, 1], ""),
        (["0.0", "2.0", "1.0"], None, 3, [0, 2, 1], ""),
        ([0, 2, 1], ("a", "b", "c"), 3, [0, 2, 1], ""),
        (["2", "1", "1"], ("1", "2"), 2, [1, 0, 0], ""),  # names of classes come first
        (["2.0", "1.0", "1.0"], ("1.0", "2.0", "3.0"), 3, [1, 0, 0], ""),
        (["b", "a", "b"], None, 2, [1, 0, 1], "taken for the labels in the order of their names"),
        (["b", "a", "b"], None, 3, None, "has 2 labels for 3 outputs"),
        (["b", "a", "b"], ("x", "y"), 2, None, "no label in"),
        (["a", "", "b"], ("a", "b"), 2, None, "1 of 3 samples in"),
        (["", "", ""], ("a", "b"), 2, None, ""),
    ],
)
def test_labels_are_names_or_numbers(
    root: Path,
    labels: list[Any],
    classes: tuple[str, ...] | None,
    outputs: int,
    expected: list[int] | None,
    note: str,
) -> None:
    manifest = write(root / "m.csv", {"path": ROWS["path"], "label": labels})
    found = listed(manifest, classes=classes, outputs=outputs)
    assert found.labels == expected
    assert (note in found.note) if note else not found.note


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({**ROWS, "label": ["NA", "emu", "cat"]}, "no class of the checkpoint is named emu"),
        ({**ROWS, "label": ["0", "1", "9"]}, "label 9 is none of the model's 3 outputs"),
        ({**ROWS, "path": ["a.png", "", "b.png"]}, "row 2 has no path"),
        ({**ROWS, "domain": ["a", "b", ""]}, "row 3 has no domain"),
        ({**ROWS, "weight": ["1", "-1", "2"]}, "the weight in row 2 is not a number of 0 or more"),
        ({**ROWS, "weight": ["1", "1", "much"]}, "the weight in row 3"),
        ({**ROWS, "weight": [0, 0, 0]}, "all weights are 0"),
        ({"path": []}, "has no rows"),
    ],
)
def test_what_is_wrong_with_a_manifest(root: Path, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        listed(write(root / "m.csv", rows), classes=CLASSES, outputs=3)
    assert "m.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00path", "cannot be read as a table"),
        (b'path\n"a.png', "cannot be read as a table"),
        (b"path,path\na,b\n", "column path stands there more than once"),
        (b"path\na.png,1,2\nb.png\n", "rows have more columns than the first line names"),
        (b"path\na\0b.png\n", "null character"),
        (b"path, path\na,b\n", "column path stands there more than once"),
        (b"a, a\n1,2\n", "column a stands there more than once"),
        (b"1.5,2\n3,4\n", "expected the first line to name the columns, got numbers"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        listed(tmp_path / "m.csv")
    assert "\n" not in str(raised.value)


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        listed(tmp_path / "m.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r'pip install "adaptkit\[parquet\]"'):
        listed(tmp_path / "m.parquet")


def test_bytes_in_parquet_are_text(root: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = pd.DataFrame({name: ROWS[name] for name in ("path", "label", "domain")})
    rows.map(str.encode).to_parquet(root / "m.parquet")
    listing = listed(root / "m.parquet", classes=CLASSES)
    assert [path.as_posix() for path in listing.paths] == ROWS["path"]
    assert listing.labels == [1, 2, 0]
    assert listing.domains == ROWS["domain"]


def test_an_image_that_is_not_there_is_left_out_and_named(root: Path) -> None:
    manifest = write(root / "m.csv", {"path": ["images/even/a.png", "gone.png", "/nowhere/x.png"]})
    loader = open_data(manifest, transform=GREY)
    assert sum(len(batch) for batch in loader) == 1
    assert loader.skipped == dict.fromkeys(["gone.png", "/nowhere/x.png"], "not there any more")


def test_absolute_paths_and_files_that_stand_twice(root: Path) -> None:
    absolute = root / "images/odd/f.png"
    manifest = write(root / "m.csv", {"path": [str(absolute)] * 2 + ["images/even/a.png"]})
    images = torch.cat(list(open_data(manifest, transform=GREY)))
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [200, 200, 0]


def test_a_table_is_the_features_that_its_columns_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 3))
    rows = {"b": features[:, 0], "label": list("xyxyx"), "a": features[:, 1], "c": features[:, 2]}
    path = write(tmp_path / "t.csv", rows)
    assert shape_of(path, pixels=False) == (3,)
    loader = open_data(path, outputs=2, batch_size=2)
    x = torch.cat([x for x, _ in loader])
    np.testing.assert_array_equal(x.numpy(), features.astype(np.float32))
    assert torch.cat([y for _, y in loader]).tolist() == [0, 1, 0, 1, 0]
    assert loader.listing.paths[4] == Path("t.csv[4]")


@pytest.mark.parametrize("times", [1, 2])
def test_the_index_that_pandas_saves_is_no_feature(tmp_path: Path, times: int) -> None:
    features = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    frame = pd.DataFrame(features, columns=["b", "a"], index=[4, 0, 7, 1, 2])
    for _ in range(times):
        frame.to_csv(tmp_path / "t.csv")
        frame = pd.read_csv(tmp_path / "t.csv")
    loader = open_data(tmp_path / "t.csv")
    np.testing.assert_array_equal(torch.cat(list(loader)).numpy(), features)
    assert loader.listing.note == (
        "The first column of t.csv has no name and numbers the rows: it is left out."
    )


def test_a_column_without_a_name_that_numbers_nothing_is_a_feature(tmp_path: Path) -> None:
    for first in ("0.5", "1"):  # no whole number, or one that stands there twice
        (tmp_path / "t.csv").write_text(f",a\n{first},2\n1,3\n")
        listing = listed(tmp_path / "t.csv")
        assert (listing.shape, listing.note) == ((2,), "")


def test_a_row_with_a_hole_is_left_out_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"a": ["1", "", "3"], "b": ["4", "5", "inf"]})
    loader = open_data(path)
    assert [x.tolist() for x in loader] == [[[1.0, 4.0]]]
    why = "holds a value that is NaN, infinite, or no number"
    assert loader.skipped == {"t.csv[1]": why, "t.csv[2]": why}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": [1, 2], "name": ["x", "y"]}, "column name holds no numbers: leave it out"),
        ({"label": [0, 1]}, "has no column of features, and none named 'path'"),
    ],
)
def test_what_is_no_table_of_features(tmp_path: Path, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(write(tmp_path / "t.csv", rows))
