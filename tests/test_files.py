"""check_outputs() and write_files(): whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from adaptkit import OutputError
from adaptkit.files import check_outputs, write_files


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"cannot write .*: Permission denied"):
        check_outputs([tmp_path / "x"], force=False)
