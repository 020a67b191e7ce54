"""Arrays in files: pixels, signals and features, mapped and not read whole."""

import copyreg
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from safetensors.torch import save_file

from adaptkit import DataError, Transform
from adaptkit.data import ImageLoader, listed, shape_of
from adaptkit.data import open as open_data

DTYPES: list[np.dtype[Any]] = [np.dtype(name) for name in (">f4", "<f8", ">i2", "u1")]
RGB = Transform(image_size=(4, 6))


def npy(path: Path, x: np.ndarray) -> None:
    np.save(path, x)


def npz(path: Path, x: np.ndarray) -> None:
    np.savez(path, x=x)


def compressed(path: Path, x: np.ndarray) -> None:
    np.savez_compressed(path, x)  # which calls it arr_0


def pt(path: Path, x: np.ndarray) -> None:
    torch.save(torch.from_numpy(x), path)


def old_pt(path: Path, x: np.ndarray) -> None:
    torch.save({"X": torch.from_numpy(x)}, path, _use_new_zipfile_serialization=False)


def safetensors(path: Path, x: np.ndarray) -> None:
    save_file({"images": torch.from_numpy(x).contiguous()}, path)


WRITERS: dict[Callable[[Path, np.ndarray], None], str] = {
    npy: ".npy",
    npz: ".npz",
    compressed: ".npz",
    pt: ".pt",
    old_pt: ".pth",
    safetensors: ".safetensors",
}


def all_of(loader: ImageLoader) -> np.ndarray:
    return torch.cat([x if isinstance(x, torch.Tensor) else x[0] for x in loader]).numpy()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("shape", [(7, 3), (5, 2, 9), (4, 3, 5, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_what_a_model_takes_comes_as_it_is(
    tmp_path: Path, write: Any, shape: tuple[int, ...], dtype: type
) -> None:
    x: np.ndarray = (np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    path = tmp_path / f"x{WRITERS[write]}"
    write(path, x)
    assert shape_of(path, pixels=True) == shape[1:]
    loader = open_data(path, batch_size=3)
    np.testing.assert_array_equal(all_of(loader), x.astype(np.float32))
    assert loader.shape == shape[1:]
    part = loader.subset([2, 0])
    np.testing.assert_array_equal(all_of(part), x[[2, 0]].astype(np.float32))


@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW"])
@pytest.mark.parametrize("write", [npy, safetensors])
def test_pixels_go_through_the_transform(tmp_path: Path, layout: str, write: Any) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    if layout == "HW":
        pixels = pixels[..., 0]
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if layout == "CHW" else pixels
    path = tmp_path / f"x{WRITERS[write]}"
    write(path, x)
    loader = open_data(path, transform=RGB)
    assert shape_of(path, pixels=True) is None
    expected = torch.stack([RGB(Image.fromarray(image)) for image in pixels])
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=0, atol=0)
    assert loader.sizes() == [(9, 8)] * 3
    assert shape_of(path, pixels=False) == x.shape[1:]  # to a model that takes no images


def test_sixteen_bits_are_scaled_and_transparency_lies_on_white(tmp_path: Path) -> None:
    np.save(tmp_path / "deep.npy", np.full((2, 4, 6), 257 * 51, dtype=np.uint16))
    np.save(tmp_path / "big.npy", np.full((2, 1, 4, 6), 257 * 51, dtype=">u2"))
    big = listed(tmp_path / "big.npy").read(0)
    assert isinstance(big, Image.Image)
    assert big.getpixel((0, 0)) == 51
    deep = listed(tmp_path / "deep.npy").read(0)
    assert isinstance(deep, Image.Image)
    assert deep.getpixel((0, 0)) == 51
    np.save(tmp_path / "clear.npy", np.zeros((2, 4, 6, 4), dtype=np.uint8))
    clear = listed(tmp_path / "clear.npy").read(1)
    assert isinstance(clear, Image.Image)
    assert clear.getpixel((0, 0)) == (255, 255, 255)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=arrays_of.arrays(
        st.sampled_from(DTYPES),
        arrays_of.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
        elements={"min_value": 0, "max_value": 100},
    ),
    fortran=st.booleans(),
    packed=st.booleans(),
)
def test_any_order_of_bytes_and_axes(
    tmp_path: Path, x: np.ndarray, fortran: bool, packed: bool
) -> None:
    x = np.asfortranarray(x) if fortran else x
    (np.savez_compressed if packed else np.savez)(tmp_path / "x.npz", x=x, y=np.zeros(len(x)))
    np.testing.assert_array_equal(all_of(open_data(tmp_path / "x.npz")), x.astype(np.float32))


def test_labels_domains_and_weights_lie_beside(tmp_path: Path) -> None:
    x = np.ones((3, 2), dtype=np.float32)
    y, domain = np.array([[2], [0], [1]]), np.array(["a", "b", "a"])
    np.savez(tmp_path / "x.npz", X=x, y=y, domain=domain, weight=np.array([0.0, 1.0, 2.0]))
    listing = listed(tmp_path / "x.npz", outputs=3)
    assert (listing.labels, listing.classes) == ([2, 0, 1], ["0", "1", "2"])
    assert (listing.domains, listing.weights) == (["a", "b", "a"], [0, 0.5, 1])
    torch.save((torch.ones(3, 2), torch.tensor([1, 1, 0])), tmp_path / "pair.pt")
    assert listed(tmp_path / "pair.pt", outputs=2).labels == [1, 1, 0]
    torch.save({"x": torch.ones(3, 2), "label": ["b", "a", "b"]}, tmp_path / "names.pt")
    assert listed(tmp_path / "names.pt", classes=("a", "b")).labels == [1, 0, 1]
    part = listing.at([2, 1])
    assert (part.labels, part.domains, part.weights) == ([1, 0], ["a", "b"], [1, 0.5])
    assert [str(path) for path in part.paths] == ["x.npz[2]", "x.npz[1]"]
    assert part.state() != listing.state()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, "expected the samples under one of"),
        ({"y": np.ones(2)}, "expected the samples under one of"),
        ({"x": np.ones(3)}, r"samples of shape \(N, ...\), got \(3,\)"),
        ({"x": np.ones((0, 3))}, r"got \(0, 3\)"),
        ({"x": np.ones((2, 0))}, r"got \(2, 0\)"),
        ({"x": np.ones((2, 3), dtype=complex)}, "samples that are numbers"),
        ({"x": np.array([["a", "b"]])}, "samples that are numbers"),
        ({"x": np.ones((2, 3)), "y": np.ones(3)}, r"'y' of shape \(2,\)"),
        ({"x": np.ones((2, 3)), "weight": np.array(["a", "b"])}, "weights that are numbers"),
        ({"x": np.ones((2, 3)), "weight": np.array([1, np.nan])}, "weight in row 2"),
        ({"x": np.zeros((2, 5, 7, 5), dtype=np.uint8)}, "with 1, 3 or 4 channels"),
        ({"x": np.array([{}], dtype=object)}, "which could run code"),
    ],
)
def test_what_is_wrong_with_an_array(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=message) as raised:
        listed(tmp_path / "x.npz", outputs=3)
    assert "x.npz" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_broken_files_are_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(DataError) as raised:
        listed(tmp_path / f"x{suffix}")
    assert f"x{suffix}" in str(raised.value)
    assert "\n" not in str(raised.value)


class Touches:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_no_code_in_a_file_is_run(tmp_path: Path, suffix: str) -> None:
    assert copyreg  # pickle's own registry is as it was
    harm = Touches(tmp_path / "harm")
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([[harm]], dtype=object), allow_pickle=True)
    else:
        torch.save({"x": harm}, path)
    with pytest.raises(DataError):
        listed(path)
    assert not (tmp_path / "harm").exists()


def test_a_zip_with_something_else_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("../x.py", "raise SystemExit")
    with pytest.raises(DataError, match="which is no array"):
        listed(tmp_path / "x.npz")


def test_a_large_array_is_mapped_and_stays_behind_when_pickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    header = np.lib.format.open_memmap(path, "w+", np.float32, (2**18, 2**12))  # 4 GiB, sparse
    header[5, :3] = 1, 2, 3
    header.flush()
    del header
    listing = listed(path)
    again = pickle.loads(pickle.dumps(listing))
    assert len(pickle.dumps(listing)) < 2000
    for found in (listing, again):
        row = found.read(5)
        assert isinstance(row, torch.Tensor)
        assert row[:4].tolist() == [1, 2, 3, 0]
    assert listing.contents() == again.contents()


def test_workers_map_it_too(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    np.testing.assert_array_equal(all_of(open_data(tmp_path / "x.npz", workers=2)), x)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.txt", "is a file of no known kind"), ("x.png", "is one image: give the folder")],
)
def test_files_that_are_no_target(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / name, transform=RGB)


def test_images_need_a_transform(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="Expected a transform, got None"):
        open_data(tmp_path)


def test_labels_that_are_missing_are_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2)), y=np.array([0, np.nan, 1]))
    torch.save({"x": torch.ones(3, 2), "y": ["a", None, "b"]}, tmp_path / "x.pt")
    for name in ("x.npz", "x.pt"):
        found = listed(tmp_path / name, classes=("a", "b"))
        assert found.labels is None
        assert "1 of 3 samples" in found.note


@pytest.mark.parametrize("dtype", [">f4", "longdouble"])
def test_arrays_of_any_kind_can_be_told_apart(tmp_path: Path, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "z.npy", x + 1)
    one, other = (open_data(tmp_path / name).listing.contents() for name in ("x.npy", "z.npy"))
    assert one != other


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3, 2).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="x is sparse or quantised"):
        listed(tmp_path / "x.pt")
