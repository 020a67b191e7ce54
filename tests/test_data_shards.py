"""Targets in tar files: samples by their names, labels beside them, and nothing unpacked."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adaptkit import DataError, Transform, data
from adaptkit.data import open_files
from adaptkit.data.shards import list_shards

GREY = Transform(image_size=(4, 4), channels=1, mean=(0.0,), std=(1.0,))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 6), value).save(buffer, "png")
    return buffer.getvalue()


def tar(path: Path, *parts: tuple[str, bytes], **fields: Any) -> Path:
    """Write a tar file of these names and contents."""
    with tarfile.open(path, "w") as archive:
        for name, content in parts:
            add(archive, name, content, **fields)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def names(listing: data.Listing) -> list[str]:
    return [path.as_posix() for path in listing.paths]


def value(listing: data.Listing, index: int) -> int:
    return int(np.asarray(listing.read(index))[0, 0])


def opened(path: Path, **how: Any) -> data.ImageLoader:
    return data.open(path, transform=GREY, **how)


def pixels(loader: Any) -> list[int]:
    batches = [batch if isinstance(batch, torch.Tensor) else batch[0] for batch in loader]
    return [round(float(x) * 255) for x in torch.cat(batches)[:, 0, 0, 0]]


def test_members_of_one_name_are_a_sample(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("x/1.cls", b"2\n"),
        ("x/1.txt", b"a caption"),
        ("x/1.jpg", png(1)),
        ("x/1.seg.png", png(99)),  # beside an image with a plain name
        ("y/1.PNG", png(2)),  # another folder, another sample
        ("readme.md", b"no sample"),
        ("y/1.cls", b"0"),
        ("._x/1.jpg", b"as macOS adds"),
        ("./z/photo.of.2020.png", png(3)),
        ("z/photo.cls", b"1"),
    )
    loader = opened(path, outputs=3)
    assert names(loader.listing) == ["a.tar/x/1.jpg", "a.tar/y/1.PNG", "a.tar/z/photo.of.2020.png"]
    ((x, y),) = loader
    assert (pixels([x]), y.tolist(), loader.skipped) == ([1, 2, 3], [2, 0, 1], {})
    assert loader.listing.source == path
    assert loader.sizes() == [(4, 6)] * 3


def test_labels_domains_and_weights_from_json(tmp_path: Path) -> None:
    said = [
        {"label": "cat", "domain": "day", "weight": 1},
        {"label": "dog", "domain": "night", "weight": 0.5, "more": [1, 2]},
    ]
    parts = [
        (f"{i}.{end}", content)
        for i, one in enumerate(said)
        for end, content in (("json", json.dumps(one).encode()), ("png", png(i)))
    ]
    found = list_shards(tar(tmp_path / "a.tar", *parts), classes=("cat", "dog", "emu"))
    assert (found.labels, found.classes) == ([0, 1], ["cat", "dog", "emu"])
    assert (found.domains, found.weights) == (["day", "night"], [1.0, 0.5])
    again = found.at([1])
    assert (names(again), again.labels, again.domains) == (["a.tar/1.png"], [1], ["night"])
    assert value(again, 0) == 1


def test_folders_named_like_classes_are_labels_where_there_are_none(tmp_path: Path) -> None:
    parts = [("set/dog/1.png", png(1)), ("set/cat/1.png", png(2))]
    path = tar(tmp_path / "a.tar", *parts)
    assert list_shards(path, classes=("cat", "dog")).labels == [1, 0]
    assert list_shards(path, classes=("cat", "emu")).labels is None
    assert list_shards(path, outputs=2).labels is None


def test_labels_that_not_all_have(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)))
    found = list_shards(path, outputs=2)
    assert found.labels is None
    assert found.note == (f"1 of 2 samples in {path} have no label, so all count as unlabelled.")
    path = tar(
        tmp_path / "b.tar", ("1.png", png(1)), ("1.json", b'{"domain": "a"}'), ("2.png", b"")
    )
    with pytest.raises(DataError, match=r"b\.tar/2\.png has no domain, and others have"):
        list_shards(path)
    path = tar(tmp_path / "c.tar", ("1.png", png(1)), ("1.cls", b"7"))
    with pytest.raises(DataError, match="7"):
        list_shards(path, outputs=2)


@pytest.mark.parametrize("said", [b"{", b"[1]", b"\xff", b'{"label": [1]}', b"[" * 10**5])
def test_what_is_no_label_is_none(tmp_path: Path, said: bytes) -> None:
    path = tar(tmp_path / "a.tar", ("1.png", png(1)), ("1.json", said))
    assert (list_shards(path, outputs=2).labels, pixels(opened(path))) == (None, [1])


@pytest.mark.parametrize("workers", [0, 2])
def test_several_files_as_a_folder_and_as_a_pattern(tmp_path: Path, workers: int) -> None:
    for i in (8, 9, 10):
        tar(tmp_path / f"s-{i:03}.tar", (f"{i}.png", png(i)), (f"1{i}.png", png(100 + i)))
    (tmp_path / "index.json").write_text("{}")
    for path in (tmp_path, tmp_path / "s-{008..010}.tar"):
        loader = opened(path, workers=workers)
        assert names(loader.listing)[:2] == ["s-008.tar/8.png", "s-008.tar/18.png"]
        assert pixels(loader) == [8, 108, 9, 109, 10, 110]
        assert pixels(loader.subset([5, 0])) == [110, 8]
    with pytest.raises(DataError, match=r"cannot read .*s-011\.tar: No such file"):
        opened(tmp_path / "s-{008..011}.tar")
    with pytest.raises(DataError, match="expected 1 to 100,000 files"):
        opened(tmp_path / "s-{000..999}-{000..999}.tar")


def test_images_in_a_folder_come_before_tar_files(tmp_path: Path) -> None:
    tar(tmp_path / "backup.tar", ("1.png", png(1)))
    (tmp_path / "2.png").write_bytes(png(2))
    assert pixels(opened(tmp_path)) == [2]
    (tmp_path / "2.png").unlink()
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "3.png").write_bytes(png(3))
    assert pixels(opened(tmp_path)) == [3]


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "MOST_OPEN", 3)
    for i in range(30):
        tar(tmp_path / f"{i:02}.tar", ("a.png", png(i)), ("b.png", png(100 + i)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    listing = list_shards(tmp_path)
    order = [*range(60), 59, 0, 17, 30] * 5
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(value, listing), order))
    assert found == [i // 2 + 100 * (i % 2) for i in order]
    other = list_shards(tmp_path)  # which shares with the first
    assert [value(other, index) for index in range(60)] == found[:60]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3 + 4
    again = pickle.loads(pickle.dumps(listing))
    assert value(again, 17) == 108
    assert again.state() == listing.state()
    del listing, other, again, pool
    assert len(list(Path("/proc/self/fd").iterdir())) == before


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files would be seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("workers", [0, 2])
def test_compressed_ones_are_read_as_others(
    tmp_path: Path, temporary: Path, suffix: str, workers: int
) -> None:
    (tmp_path / "in").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(3):
        parts = [
            (f"{i}{k}.{end}", content)
            for k in range(4)
            for end, content in (("png", png(10 * i + k)), ("cls", b"%d" % (k % 2)))
        ]
        plain = tar(tmp_path / "in" / f"{i}.tar", *parts)
        if i != 1:  # one of them is not compressed
            plain.with_name(f"{i}{suffix}").write_bytes(COMPRESS[suffix](plain.read_bytes()))
            plain.unlink()
    loader = opened(tmp_path / "in", outputs=2, workers=workers, batch_size=5)
    assert names(loader.listing)[:2] == [f"0{suffix}/00.png", f"0{suffix}/01.png"]
    assert loader.listing.labels == [0, 1] * 6
    for _ in range(2):
        assert pixels(loader) == [10 * i + k for i in range(3) for k in range(4)]
    assert pixels(loader.subset([9, 2])) == [21, 2]
    assert not list(temporary.iterdir())
    state = loader.listing.state()
    assert opened(tmp_path / "in", outputs=2).listing.state() == state
    os.utime(tmp_path / "in" / f"2{suffix}", (1, 1))
    assert opened(tmp_path / "in", outputs=2).listing.state() != state
    with pytest.raises(DataError, match="are open in this process alone"):
        pickle.dumps(loader.listing)
    del loader
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_wrong_with_compressed_ones(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gzip.compress(tar(tmp_path / "a.tar", ("1.png", png(1))).read_bytes())
    path = tmp_path / "a.tgz"
    for content, message in (
        (whole[:-20], "is compressed and broken: "),
        (whole[:20] + bytes(20) + whole[40:], "is compressed and broken: "),
        (gzip.compress(b"hello" * 200), "is no tar file"),
        (gzip.compress(whole), "is no tar file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^\S*a\.tgz {message}") as caught:
            list_shards(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    monkeypatch.setattr(open_files, "MOST_OPEN", open_files.OpenFiles.open_in_all)
    with pytest.raises(DataError, match="at a time: decompress them first"):
        list_shards(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=9999, free=1000))
    with pytest.raises(DataError, match=r"a\.tgz is compressed, and \S+ has no room for what it"):
        list_shards(path)
    assert not list(temporary.iterdir())


def test_what_is_bad_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        add(archive, "/etc/absolute.png", png(1))
        add(archive, "../../above.png", png(2))
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard.png", b"", type=tarfile.LNKTYPE, linkname="ok.png")
        add(archive, "disk.png", b"", type=tarfile.BLKTYPE)
        add(archive, "ok.png", png(3))
        add(archive, "ok.png", png(4))
        add(archive, "ok.jpg", png(5))
        add(archive, "text.png", b"no image")
        add(archive, "empty.png", b"")
        add(archive, "last.png", png(6) * 20)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(png(6)) - 100])
    monkeypatch.chdir(path.parent)
    loader = opened(path)
    assert pixels(loader) == [1, 2, 3]
    again = "another image of ok, which has png already"
    assert loader.skipped == {
        "a.tar/link.png": "a link",
        "a.tar/hard.png": "a link",
        "a.tar/disk.png": "a device",
        "a.tar/ok.png#2": again,
        "a.tar/ok.jpg#3": again,
        "a.tar/text.png": "not an image that can be identified",
        "a.tar/empty.png": "not an image that can be identified",
        "a.tar/last.png": "cut off: the archive ends before it does",
    }
    assert loader.listing.note == (
        "a.tar: without the mark that ends a tar file, so perhaps cut off."
    )
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_a_huge_member_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.png")
    member.size = 10 * 2**30
    with path.open("wb") as file:  # a file of holes, which has these bytes and takes none
        file.write(member.tobuf())
        file.seek(member.size, os.SEEK_CUR)
        file.write(bytes(1024))
    loader = opened(path)
    assert list(loader) == []
    assert loader.skipped == {"a.tar/a.png": "larger than 1 GiB"}


def test_files_that_change_meanwhile(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.png", png(1)), ("b.png", png(2) + bytes(9000)))
    listing = list_shards(path)
    state = listing.state()
    with path.open("r+b") as file:
        file.truncate(2000)
    assert value(listing, 0) == 1
    with pytest.raises(DataError, match="the tar file has become shorter"):
        listing.read(1)
    assert listing.state() != state
    again = list_shards(tar(path, ("a.png", png(1))))
    path.unlink()
    with pytest.raises(DataError, match="cannot read the tar file: No such file"):
        again.read(0)
    assert again.size(0) is None


@pytest.mark.parametrize("content", [(), (("a.txt", b"none"),)])
def test_without_images(tmp_path: Path, content: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(DataError, match=r"a\.tar holds no images \(\.png, "):
        opened(tar(tmp_path / "a.tar", *content))


def test_what_the_system_s_tar_packs_of_a_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "root" / name / f"{i}.png").write_bytes(png(i + 10 * (name == "dog")))
    path = tmp_path / "a.tar"
    subprocess.run(
        ["tar", "--sort=name", "-C", str(tmp_path / "root"), "-cf", path, "."], check=True
    )
    loader = opened(path, classes=("cat", "dog"))
    ((x, y),) = loader
    assert (pixels([x]), y.tolist()) == ([0, 1, 2, 10, 11, 12], [0, 0, 0, 1, 1, 1])
    folder = opened(tmp_path / "root", classes=("cat", "dog"))
    assert torch.equal(next(iter(folder))[0], x)
