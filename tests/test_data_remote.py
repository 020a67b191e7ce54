"""Targets behind URLs: what lies on a web server or in a bucket is read as a folder here is."""

import gzip
import io
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from served import Fault, Served, impatient, served

from adaptkit import AdaptkitError, DataError, Transform, data
from adaptkit.data import ImageLoader, Listing, Remote, connections, patience, place, remote
from adaptkit.data.chained import chained
from adaptkit.errors import DependencyError

GREY = Transform((8, 8), 1, (0.5,), (0.5,))
CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with impatient(monkeypatch):
        yield


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images/cat/0.png to 2.png, images/dog/3.png to 5.png."""
    for i in range(6):
        path = tmp_path / "images" / CLASSES[i // 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return tmp_path


@pytest.fixture
def web(folder: Path) -> Iterator[Served]:
    with served(folder) as found:
        yield found


def opened(where: str | Path | Remote, **options: Any) -> ImageLoader:
    return data.open(where, transform=GREY, classes=CLASSES, **options)


def assert_alike(found: ImageLoader, due: ImageLoader) -> None:
    """Hold two loaders to the same names, batches and labels."""
    assert found.paths() == due.paths()
    assert found.listing.labels == due.listing.labels
    for (x, y), (a, b) in zip(found, due, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert found.skipped == due.skipped
    assert found.sizes() == due.sizes()


# Folders


@pytest.mark.parametrize(
    ("ending", "workers"),
    [("images", 0), ("images", 2), ("images/", 0), ("images/?token=1", 0), ("./x/../images", 0)],
)
def test_a_folder_of_a_web_server_is_read_as_one_here(
    folder: Path, web: Served, ending: str, workers: int
) -> None:
    found = opened(web.url + ending, batch_size=4, workers=workers)
    assert_alike(found, opened(folder / "images", batch_size=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_is_read_as_a_folder_here(folder: Path, workers: int) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder / "images"), "/bucket/a/images", recursive=True)
    bucket.pipe("/bucket/a/images/cat/.hidden.png", b"")
    bucket.pipe("/bucket/a/images/cat/notes.txt", b"")
    try:
        found = opened("memory://bucket/a/images", workers=workers)
        assert_alike(found, opened(folder / "images"))
        state = found.listing.state()
        assert opened("memory://bucket/a/images/").listing.state() == state
        assert found.listing.at([0, 1]).state() != state
        bucket.pipe("/bucket/a/images/cat/0.png", as_png(9))
        assert opened("memory://bucket/a/images").listing.state() != state
        with pytest.raises(DataError, match=r"^there is no folder memory://bucket/b/$"):
            opened("memory://bucket/b")
        with pytest.raises(DataError, match=r"a/images/cat/0\.png is one image: give the folder"):
            opened("memory://bucket/a/images/cat/0.png")
    finally:
        bucket.rm("/bucket", recursive=True)


def test_any_name_that_a_file_can_have(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "a+b%20.png",
        "50%.png",
        "q?x=1&y#z.png",
        "é.png",
        "'\"<&amp;>.png",
        "~;,.png",
    ]
    for seed, name in enumerate(names):
        (tmp_path / "é ü").mkdir(exist_ok=True)
        picture(seed).save(tmp_path / "é ü" / name)
    with served(tmp_path) as web:
        found = data.listed(web.url)
        here = data.listed(tmp_path)
        assert found.paths == list(here.paths)
        for index in range(len(names)):
            first, second = found.read(index), here.read(index)
            assert isinstance(first, Image.Image)
            assert isinstance(second, Image.Image)
            assert first.tobytes() == second.tobytes()


def test_only_what_is_wanted_is_fetched_in_the_order_wanted(web: Served) -> None:
    found = opened(web.url + "images")
    assert sorted(web.asked) == ["/images/", "/images/cat/", "/images/dog/"]
    web.asked.clear()
    wanted = found.subset([4, 1])
    ((x, y),) = list(wanted)
    assert y.tolist() == [1, 0]
    whole = torch.cat([x for x, _ in found])
    assert torch.equal(x, whole[[4, 1]])
    assert sorted(web.asked[:2]) == ["/images/cat/1.png", "/images/dog/4.png"]


def test_several_are_fetched_at_a_time_but_no_more_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        picture(i).save(tmp_path / f"{i:02}.png")
    monkeypatch.setattr(remote, "AT_ONCE", 4)
    with served(tmp_path) as web:
        found = data.open(web.url, transform=GREY)
        web.together = threading.Barrier(4)  # nobody gets an answer until four have asked
        assert torch.equal(next(iter(found)), next(iter(data.open(tmp_path, transform=GREY))))
        assert web.most == 4


def test_pages_as_other_servers_write_them(web: Served) -> None:
    page = f"""<html><head><title>Index of /odd</title></head><body>
    <a href="?C=N;O=D">Name</a> <a href="/">Parent Directory</a> <a href="../">..</a>
    <a href="./">.</a> <a href="">nothing</a> <a href="//">nothing</a>
    <A HREF='a%20b.png'>a b</A> <a class=x href=plain.png>no quotes</a>
    <a href="x&amp;y.png?v=1">x</a> <a href="/odd/abs.png">absolute</a>
    <a href="{web.url}odd/whole.png">whole</a> <a href="http://there.invalid/odd/no.png">no</a>
    <a href="/there/no.png">no</a> <a href="sub/deep.png">deep</a> <a href="a/../../no.png">no</a>
    <a href="mailto:me@here">me</a> <a href="http://[bad/no.png">bad</a> <a href=".no.png">no</a>
    <a href="a%20b.png">again</a> <a>nothing</a> http://127.0.0.1/odd/text.png <img src="no.png">
    <a href="notes.txt">no image</a></body>"""
    web.faults["/odd/"] = [page.encode()]
    found = data.listed(web.url + "odd")
    names = ["a b.png", "abs.png", "plain.png", "sub/deep.png", "whole.png", "x&y.png"]
    assert [path.as_posix() for path in found.paths] == names
    assert web.asked == ["/odd/"]


def test_folders_without_end(web: Served) -> None:
    for depth in range(1, 70):
        web.faults["/round/" + "a/" * (depth - 1)] = [b'<a href="a/">a</a>']
    with pytest.raises(DataError, match=r"nested more than 64 deep: do links go round\?"):
        data.listed(web.url + "round")


# What goes wrong


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 429, 408, "reset", "cut"])
def test_what_may_pass_is_tried_again(folder: Path, web: Served, fault: Fault) -> None:
    for path in ("/images/", "/images/dog/", "/images/cat/1.png"):
        web.faults[path] = [fault, fault]
    assert_alike(opened(web.url + "images"), opened(folder / "images"))
    assert web.asked.count("/images/") == web.asked.count("/images/dog/") == 3
    assert web.asked.count("/images/cat/1.png") == 3


@pytest.mark.parametrize(
    ("fault", "reason", "times"),
    [
        (404, "not there any more", 1),
        (401, "HTTP 401 Unauthorized: are credentials missing?", 1),
        (403, "HTTP 403 Forbidden: are credentials missing?", 1),
        (410, "HTTP 410 Gone", 1),
        (503, "HTTP 503 Service Unavailable", 5),
        (599, "HTTP 599", 5),
        ("silent", "no answer in time", 5),
        (b"<html>Please log in</html>", "not an image that can be identified", 1),
        (as_png(0)[:-30], "image file is truncated", 1),
    ],
)
def test_a_file_that_cannot_be_had_is_left_out_and_named(
    web: Served, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str, times: int
) -> None:
    monkeypatch.setattr(connections, "SILENT", 0.1)
    web.faults["/images/cat/1.png"] = [fault, "always"]
    found = opened(web.url + "images")
    assert sum(len(x) for x, _ in found) == 5
    assert list(found.skipped) == ["cat/1.png"]
    assert found.skipped["cat/1.png"].startswith(reason)
    assert web.asked.count("/images/cat/1.png") == times


def test_a_file_that_goes_away_after_it_was_listed(folder: Path, web: Served) -> None:
    found = opened(web.url + "images")
    (folder / "images" / "dog" / "4.png").unlink()
    assert sum(len(x) for x, _ in found) == 5
    assert found.skipped == {"dog/4.png": "not there any more"}
    assert len(found.sizes()) == 5


def test_waits_grow_and_a_server_may_say_how_long(
    web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(patience, "WAITS", (1.0, 4.0, 16.0))
    web.faults["/images/"] = [503, 503, 503]
    data.listed(web.url + "images")
    assert len(waited) == 3
    assert all(b > a for a, b in pairwise(waited))
    web.headers["Retry-After"] = "7"
    web.faults["/images/"] = [429]
    data.listed(web.url + "images")
    web.headers["Retry-After"] = "86400"
    web.faults["/images/"] = [429]
    data.listed(web.url + "images")
    assert waited[3:] == [7, 30]


def test_where_nothing_works_any_more_a_run_comes_to_its_end(
    web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HOPELESS", 2)
    found = data.listed(web.url + "images")
    files = [f"/images/{path.as_posix()}" for path in found.paths]
    web.faults.update({file: [503, "always"] for file in files})
    for index in range(6):
        with pytest.raises(DataError, match="HTTP 503 Service Unavailable"):
            found.read(index)
    assert [web.asked.count(file) for file in files] == [5, 5, 1, 1, 1, 1]
    web.faults.clear()
    found.read(5)
    web.asked.clear()
    web.faults[files[0]] = [503, 503]
    found.read(0)  # with patience again
    assert web.asked == [files[0]] * 3


@pytest.mark.parametrize(
    ("faults", "ending", "message"),
    [
        ({}, "nothing", "^there is no folder {url}nothing/$"),
        ({}, "nothing.csv", "^there is no {url}nothing.csv$"),
        ({"/images/": [403, "always"]}, "images", "^cannot list {url}images/: HTTP 403 Forbidden"),
        ({"/images/": [500, "always"]}, "images", "^cannot list {url}images/: HTTP 500 Internal"),
        ({"/images/dog/": [503, "always"]}, "images", "^cannot list {url}images/dog/: HTTP 503"),
        ({"/images/": ["reset", "always"]}, "images", "^cannot list {url}images/: "),
        ({"/images/": ["silent", "always"]}, "images", "^cannot list {url}images/: no answer in t"),
        ({"/images/": [b"\x00\xff" * 99]}, "images", r"^{url}images holds no images \(\.png, "),
        ({"/a.csv": [401, "always"]}, "a.csv", "^cannot fetch {url}a.csv: HTTP 401 Unauthorized: "),
        ({"/a.npz": [b"PK nothing"]}, "a.npz", "^{url}a.npz cannot be read as .npz: "),
        ({"/a.csv": [b"path\n"]}, "a.csv", "^{url}a.csv has no rows$"),
    ],
)
def test_one_line_says_why_there_is_no_target(
    web: Served,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, list[Fault]],
    ending: str,
    message: str,
) -> None:
    monkeypatch.setattr(connections, "SILENT", 0.1)
    web.faults.update(faults)
    secret = web.url.replace("://", "://me:hunter2@") + ending + "?signature=hunter3"
    with pytest.raises(DataError, match=message.format(url=web.url)) as caught:
        opened(secret)
    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://127.0.0.1:1/a",
            r"cannot list http://127\.0\.0\.1:1/a/: no connection to 127.0.0.1: ",
        ),
        ("http:///a", "cannot list http:///a/: not a valid URL"),
        ("nonsense://a/b", "no protocol 'nonsense' is known: expected one of fsspec's, such as h"),
    ],
)
def test_places_that_are_none(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.listed(url)


@pytest.mark.parametrize(
    ("module", "url", "message"),
    [
        ("s3fs", "s3://bucket/a", "s3:// needs another package: pip install s3fs"),
        ("gcsfs", "gs://bucket/a", "gs:// needs another package: pip install gcsfs"),
        ("aiohttp", "https://host/a", r'https:// .*: pip install "adaptkit\[remote\]"'),
        ("paramiko", "sftp://me:pw@host/a", 'sftp://host/a/: SFTPFileSystem requires "paramiko"'),
    ],
)
def test_what_a_protocol_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, url: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for done in ("http", "sftp"):
        monkeypatch.delitem(sys.modules, f"fsspec.implementations.{done}", raising=False)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})
    with pytest.raises(DependencyError, match=message):
        data.listed(url)


# Single files


def test_manifests_arrays_and_tables_are_fetched_once(
    folder: Path, web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    rows = [f"images/{CLASSES[i // 3]}/{i}.png,{CLASSES[i // 3]}" for i in (5, 0, 3)]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 8), dtype=np.uint8)
    np.save(folder / "a.npy", pixels)
    np.savez(folder / "b.npz", x=pixels, y=[0, 1, 1, 0])
    np.savez_compressed(folder / "c.npz", x=pixels, label=["cat"] * 4)
    torch.save(torch.from_numpy(pixels), folder / "d.pt")
    save_file({"x": torch.from_numpy(pixels)}, folder / "e.safetensors")
    pd.DataFrame({"a": [0.5, 1.0], "label": [1, 0]}).to_parquet(folder / "f.parquet")
    for name in ("list.csv", "a.npy", "b.npz", "c.npz", "d.pt", "e.safetensors", "f.parquet"):
        where = place(web.url + name)
        web.asked.clear()
        data.shape_of(where, pixels=True)
        found, due = opened(where), opened(folder / name)
        assert web.asked == [f"/{name}"]
        assert str(found.listing.source) in (web.url[:-1], web.url + name)
        assert not list(temporary.iterdir())
        assert found.listing.labels == due.listing.labels
        for x, a in zip(found, due, strict=True):
            assert all(torch.equal(u, v) for u, v in zip(x, a, strict=True))
        assert opened(where).listing.state() == opened(where).listing.state()


def test_tar_files_are_fetched_whole_and_have_no_name_then(
    folder: Path, web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    for n in range(2):
        with tarfile.open(folder / f"a-{n}.tar", "w") as archive:
            for i in range(3):
                for name, content in ((f"{i}.png", as_png(3 * n + i)), (f"{i}.cls", b"%d" % n)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (folder / "b.tar").write_bytes(b"nothing" * 100)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name in ("a-1.tar", "a-{0..1}.tar"):
        for workers in (0, 2):
            assert_alike(opened(web.url + name, workers=workers), opened(folder / name))
        assert not list(temporary.iterdir())
    assert web.asked[:2] == ["/a-1.tar"] * 2
    assert sorted(web.asked[2:]) == ["/a-0.tar"] * 2 + ["/a-1.tar"] * 2
    (folder / "c.tgz").write_bytes(gzip.compress((folder / "a-1.tar").read_bytes()))
    assert_alike(opened(web.url + "c.tgz", workers=2), opened(folder / "c.tgz"))
    assert not list(temporary.iterdir())
    (folder / "shards v1.0").mkdir()
    for name in ("a-0.tar", "a-1.tar"):
        (folder / "shards v1.0" / name).hardlink_to(folder / name)
    (folder / "shards v1.0" / "notes.txt").touch()
    for ending in ("shards v1.0", "shards%20v1.0/?token=1"):
        web.asked.clear()
        where = place(web.url + ending)
        assert data.shape_of(where, pixels=True) is None
        assert_alike(opened(where), opened(folder / "shards v1.0"))
        assert len(web.asked) == 3
    with pytest.raises(DataError, match=f"^there is no {web.url}a-2.tar$"):
        opened(web.url + "a-{0..2}.tar")
    with pytest.raises(DataError, match=f"^{web.url}b.tar is no tar file$"):
        opened(web.url + "b.tar")


def test_a_manifest_here_may_name_urls(folder: Path, web: Served) -> None:
    secret = web.url.replace("://", "://me:hunter2@")
    rows = [
        "images/cat/0.png",
        f"{web.url}images/dog/3.png",
        f"{secret}images/dog/4.png?signature=hunter3",
        (folder / "images/cat/1.png").as_uri(),
    ]
    (folder / "list.csv").write_text("\n".join(["path", *rows]))
    found = data.open(folder / "list.csv", transform=GREY)
    due = torch.stack([GREY(picture(i)) for i in (0, 3, 4, 1)])
    assert torch.equal(next(iter(found)), due)
    names = [path.as_posix() for path in found.paths()]
    host = web.url.removeprefix("http://")
    assert names[:3] == [rows[0], f"{host}images/dog/3.png", f"{host}images/dog/4.png"]
    assert "hunter" not in repr(found.listing)
    assert "/images/cat/1.png" not in web.asked


def test_urls_that_look_alike_are_told_apart(folder: Path, web: Served) -> None:
    rows = [f"{web.url}images/cat/0.png?v={v}" for v in (1, 2)]
    (folder / "list.csv").write_text("\n".join(["path", *rows]))
    found = data.listed(folder / "list.csv")
    assert len(set(found.paths)) == 2


def test_listings_from_anywhere_can_be_one(folder: Path, web: Served) -> None:
    parts = {name: opened(web.url + "images").listing for name in ("a", "b")}
    parts["c"] = data.listed(folder / "images").at([5, 2])
    found = chained(folder, parts)
    assert len(found) == 14
    assert found.paths[12] == Path("c/dog/5.png")
    assert found.at_once == remote.AT_ONCE
    some = found.at([13, 0])
    assert [path.as_posix() for path in some.paths] == ["c/cat/2.png", "a/cat/0.png"]
    for index, due in enumerate((picture(2), picture(0))):
        image = some.read(index)
        assert isinstance(image, Image.Image)
        assert image.tobytes() == due.tobytes()
    assert some.sizes([1]) == [(8, 9)]
    assert some.state() != found.state()
    assert some.contents() != found.contents()


def test_a_manifest_elsewhere_names_nothing_here(folder: Path, web: Served) -> None:
    (folder / "lists").mkdir()
    manifest = folder / "lists" / "list.csv"
    manifest.write_text(f"path\n../images/cat/0.png\n{web.url}images/dog/3.png\n")
    found = data.open(f"{web.url}lists/list.csv", transform=GREY)
    assert torch.equal(next(iter(found)), torch.stack([GREY(picture(i)) for i in (0, 3)]))
    for name in ("/etc/passwd.png", f"file://{folder}/images/cat/0.png"):
        manifest.write_text(f"path\n{name}\n")
        with pytest.raises(DataError, match=r"list\.csv: expected URLs, or paths below its folder"):
            data.listed(f"{web.url}lists/list.csv")


# Places


def test_places_have_the_parts_of_paths() -> None:
    where = Remote("https://me:pw@host:8/a/b%20c.PNG?sig=1#top")
    assert str(where) == "https://host:8/a/b%20c.PNG"
    assert (where.name, where.suffix, where.protocol) == ("b c.PNG", ".PNG", "https")
    assert where.parent.url == "https://me:pw@host:8/a?sig=1"
    assert (where.parent / "x/é.png").url == "https://me:pw@host:8/a/x/%C3%A9.png?sig=1"
    assert (where.parent / "../../../x.png").url == "https://me:pw@host:8/x.png?sig=1"
    bucket = Remote("s3://bucket/a?b/#c.csv")
    assert (str(bucket), bucket.name) == ("s3://bucket/a?b/#c.csv", "#c.csv")
    assert (bucket.parent / "é %20.png").url == "s3://bucket/a?b/é %20.png"
    assert str(bucket.parent.parent.parent) == "s3://bucket"
    assert Remote("s3://bucket/v1.csv/").suffix == ""
    assert "pw" not in repr(where)
    assert place("file:///a%20b") == Path("/a b")
    assert place(Path("a")) == Path("a")
    assert place(where) is where
    assert data.place("c:/images") == Path("c:/images")


@pytest.mark.slow
def test_nothing_of_this_is_imported_for_what_lies_here(folder: Path) -> None:
    import subprocess

    program = (
        "import sys; from adaptkit import data; data.listed('images'); "
        "assert 'adaptkit.data.remote' not in sys.modules and 'aiohttp' not in sys.modules"
    )
    root = Path(__file__).parent.parent
    program = program.replace("'images'", repr(str(folder / "images")))
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def test_a_listing_can_be_sent_to_another_process(web: Served, folder: Path) -> None:
    import pickle

    found: Listing = pickle.loads(pickle.dumps(data.listed(web.url + "images")))
    assert found.read(0) == data.listed(folder / "images").read(0)
    np.save(folder / "a.npy", np.arange(6.0).reshape(3, 2))
    array: Listing = pickle.loads(pickle.dumps(data.listed(web.url + "a.npy")))
    assert torch.equal(array.read(1), torch.tensor([2.0, 3.0]))  # type: ignore[arg-type]


def test_errors_are_of_the_kind_that_users_can_mend() -> None:
    with pytest.raises(AdaptkitError):
        data.open("memory://nothing/here", transform=GREY)
