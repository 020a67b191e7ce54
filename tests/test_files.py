"""check_outputs(), write_files() and replace_file(): whole or not at all."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptkit import OutputError
from adaptkit.files import check_outputs, remove_file, replace_file, write_files


def test_files_are_written_with_the_usual_mode(tmp_path: Path) -> None:
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}
    (tmp_path / "usual").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_keeps_the_old_files_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(OutputError, match=r"cannot write .*a: No space left on device"):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_failure_at_the_last_file_puts_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "c").mkdir()  # so that moving a file there fails

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match=r"cannot write .*c: "):
        write_files({tmp_path / name: b"new" for name in "abc"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_files_are_replaced_and_no_old_ones_are_left(tmp_path: Path) -> None:
    for _ in range(2):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The system itself refuses the bytes beyond a limit, after some were written."""
    (tmp_path / "b").write_bytes(b"old")
    program = """
import resource, sys
from pathlib import Path
from adaptkit.errors import OutputError
from adaptkit.files import write_files
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_files({Path("a"): b"new", Path("b"): bytes(1_000_000)})
except OutputError as error:
    sys.exit(str(error))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, "cannot write b: File too large\n")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"b": b"old"}


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "a": b"new"})
    assert not list(tmp_path.iterdir())


def test_checks_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    new = tmp_path / "new"
    check_outputs([new], inputs=[source], force=False)
    for outputs, message in {
        (source,): "is also the input",
        (new, tmp_path / "." / "new"): "two outputs would be written",
        (tmp_path,): "is a folder",
        (tmp_path / "no" / "x",): "there is no folder",
    }.items():
        with pytest.raises(OutputError, match=message):
            check_outputs(outputs, inputs=[source], force=True)
    new.touch()
    with pytest.raises(OutputError, match="exists already"):
        check_outputs([new], force=False)
    check_outputs([new], force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "source"]


def test_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, message in {
        "x" * 300: "File name too long",
        "a\0b": "null byte",
        "circle": "cannot write .*circle: ",
    }.items():
        with pytest.raises(OutputError, match=message):
            check_outputs([tmp_path / name], force=True)
    with pytest.raises(OutputError, match="exists already"):
        check_outputs([tmp_path / "dangling"], force=False)
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(OutputError, match="cannot write"):
            write_files({tmp_path / name: b""})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circle", "dangling"]


def test_the_longest_name_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("😀" * 63)
    write_files({path: b"1"})
    assert path.read_bytes() == b"1"


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Be somebody to whom permissions apply."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    with not_root(), pytest.raises(OutputError, match=r"cannot write .*: Permission denied"):
        check_outputs([folder / "x"], force=False)


def test_a_failure_at_the_second_move_puts_the_first_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    replace = Path.replace

    def only_a(self: Path, target: Path) -> Path:
        if target.name == "b" and self.suffix == ".part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", only_a)
    with pytest.raises(OutputError, match=r"cannot write .*b: Input/output error"):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new", tmp_path / "c": b"new"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_a_file_that_is_replaced_is_never_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.resume"
    replace_file(path, b"old")

    def stopped(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # as SIGKILL would, it leaves what it was writing
        patch.setattr(os, "fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            replace_file(path, b"half")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.resume", "a.resume.part"]
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]
    (tmp_path / "a.resume.part").write_bytes(b"half")
    remove_file(path)
    remove_file(path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_replaced(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    (tmp_path / "a.part").symlink_to(outside)
    replace_file(tmp_path / "a", b"ours")
    assert outside.read_bytes() == b"not ours"
    for path in (tmp_path / "none" / "a", tmp_path / "\0"):
        with pytest.raises(OutputError, match="cannot write"):
            replace_file(path, b"")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        replace_file(tmp_path / "b", b"")
    with pytest.raises(OutputError, match="cannot remove"):
        remove_file(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "outside"]
