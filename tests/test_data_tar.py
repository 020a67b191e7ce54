"""members(): the headers of tar files of every format, and of files that mean harm."""

import io
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptkit import DataError
from adaptkit.data.tar import BLOCK, Member, members

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
NAMES = [
    "a.jpg",
    "b/c.png",
    "d" * 99,
    "ü/" * 30 + "é.png",
    "f/" * 40 + "g" * 60,
    "h" * 90 + "/i.gif",
]
LONG = ["k/" * 150 + "l.jpg", "m" * 200]  # for which ustar has no room


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


def found(path: Path) -> list[tuple[str, int, int]]:
    return [(m.name, m.offset, m.size) for m in members(path) if not m.reason]


def add(archive: tarfile.TarFile, name: str, content: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def written(path: Path, form: str = "pax", **contents: bytes) -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as archive:
        for name, content in contents.items():
            add(archive, name, content)
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_python_wrote_it(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[form]) as archive:
        for i, name in enumerate([*NAMES, *([] if form == "ustar" else LONG)]):
            add(archive, name, bytes([i]) * 300 * i)
            add(archive, f"folder{i}", b"", type=tarfile.DIRTYPE)
    assert found(path) == by_tarfile(path)
    whole = path.read_bytes()
    for i, (_, offset, size) in enumerate(found(path)):
        assert whole[offset : offset + size] == bytes([i]) * 300 * i


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "pax", "posix"])
def test_the_system_s_tar_wrote_it(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    short = [name for name in NAMES if form != "v7" or len(name.encode()) < 95]
    for i, name in enumerate([*short, *([] if form in ("v7", "ustar") else LONG)]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * 300 * i)
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={form}", "-C", str(root), "-cf", str(path), "."], check=True)
    assert len(found(path)) >= len(short)
    assert found(path) == by_tarfile(path)


@given(st.lists(st.tuples(st.text("abü/.x", min_size=1, max_size=300), st.integers(0, 2000))))
def test_any_names_and_sizes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    for form in ("gnu", "pax"):
        with tarfile.open(path, "w", format=FORMATS[form]) as archive:
            for name, size in parts:
                add(archive, name.strip("/") or "a", bytes(size))
        assert found(path) == by_tarfile(path)


def test_what_is_no_file_says_so_and_is_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    kinds = {
        "link": (tarfile.SYMTYPE, "a link"),
        "hard": (tarfile.LNKTYPE, "a link"),
        "pipe": (tarfile.FIFOTYPE, "a named pipe"),
        "disk": (tarfile.BLKTYPE, "a device"),
        "tty": (tarfile.CHRTYPE, "a device"),
        "odd": (b"Z", "no regular file"),
    }
    with tarfile.open(path, "w") as archive:
        for name, (kind, _) in kinds.items():
            add(archive, name, b"", type=kind, linkname="/etc/passwd")
        add(archive, "/absolute/../../a.jpg", b"content")
    *odd, last = members(path)
    assert {m.name: m.reason for m in odd} == {name: why for name, (_, why) in kinds.items()}
    assert (last.name, last.size, last.reason) == ("/absolute/../../a.jpg", 7, "")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_are_passed_over(tmp_path: Path, form: str) -> None:
    with (tmp_path / "holes.png").open("wb") as file:
        for place in range(0, 40):  # more than a header has room for
            file.seek(place * 2**16)
            file.write(b"x" * 4096)
        file.truncate(2**24)
    (tmp_path / "next.png").write_bytes(b"whole")
    path = tmp_path / "a.tar"
    line = ["tar", f"--format={form}", "-S", "-C", str(tmp_path), "-cf", str(path)]
    subprocess.run([*line, "holes.png", "next.png"], check=True)
    sparse, whole = members(path)
    assert (sparse.name, sparse.reason) == ("holes.png", "stored as a sparse file")
    assert path.read_bytes()[whole.offset : whole.offset + whole.size] == b"whole"


def test_a_copy_that_was_broken_off(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", a=b"a" * 700, b=b"b" * 700)
    whole = path.read_bytes()
    assert [m.name for m in members(path)] == ["a", "b"]
    for cut in range(BLOCK, 6 * BLOCK, 100):
        path.write_bytes(whole[:cut])
        *some, last = members(path)
        assert last == Member("", last.offset, 0, "without an end mark")
        good = [m.name for m in some if not m.reason]
        assert good == (["a", "b"] if cut >= 1236 + 3 * BLOCK - 1024 + 1000 - 512 + 512 else good)
        for m in some:
            assert m.reason in ("", "cut off: the archive ends before it does")
            assert bool(m.reason) == (m.offset + m.size > cut)


def forged(name: bytes = b"a.jpg", size: bytes = b"%011o\0" % 3, kind: bytes = b"0") -> bytes:
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no tar file"),
        (b"PK\3\4" + bytes(2000), "is no tar file"),
        (forged()[:-1], "is no tar file"),
        (forged() + b"abc" + bytes(509) + b"garbage" * 200, "is broken at byte 1,024"),
        (forged(size=b"\xff" * 12) + END, "a member at byte 0 without a size"),
        (forged(size=b"-0000000512\0") + END, "a member at byte 0 without a size"),
        (forged(size=b"99999999999\0") + END, "a member at byte 0 without a size"),
        (forged(size=b"%011o\0" % 2**30, kind=b"x") + END, "a header at byte 0 that is too long"),
        (forged(size=b"%011o\0" % 2**30, kind=b"L") + END, "a header at byte 0 that is too long"),
        (forged(size=b"%011o\0" % 0, kind=b"x") * 1000 + END, "that is too long"),
        (forged(size=b"%011o\0" % 9, kind=b"x") + b"9 size=-1\n" + END, "broken pax header"),
        (forged(size=b"%011o\0" % 9, kind=b"x") + b"999999999 a=1\n" + END, "broken pax header"),
        (forged(size=b"%011o\0" % 9, kind=b"x") + b"0 a=1\n0 b=1\n" + END, "broken pax header"),
    ],
)
def test_what_is_no_tar_file_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        list(members(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_member_that_claims_gigabytes_costs_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for size in (b"\x80" + (10**10).to_bytes(11, "big"), b"%011o\0" % (8**11 - 1)):
        path.write_bytes(forged(size=size) + b"abc" + bytes(509) + END)
        tracemalloc.start()
        some = list(members(path))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert some[0].reason == "cut off: the archive ends before it does"
        assert peak < 2**20


def test_a_pax_header_of_many_records_is_read_in_one_go(tmp_path: Path) -> None:
    records = b"6 a=1\n" * (2**20 // 6)
    size = len(records)
    path = tmp_path / "a.tar"
    path.write_bytes(
        forged(size=b"%011o\0" % size, kind=b"x") + records + bytes(-size % BLOCK) + forged() + END
    )
    assert [m.name for m in members(path)] == ["a.jpg"]


def test_zstd_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(BLOCK))
    with pytest.raises(DataError, match=r"a\.tar is compressed by zstd, .*: unzstd it first"):
        list(members(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.tar: No such file"):
        list(members(tmp_path / "none.tar"))
