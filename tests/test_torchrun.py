"""The command under torchrun: one result, one voice, and nothing left behind where one fails."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from adaptkit import load_checkpoint
from cli import main

ROOT = Path(__file__).parent.parent
IMAGES = 90
CLASSES = [str(k) for k in range(10)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.pt and target/, a dark one, in which an image cannot be read."""
    folder = tmp_path_factory.mktemp("torchrun")
    digits.save(folder / "source.pt", CLASSES)
    x, y = digits.images()
    for i in range(digits.TRAINED_ON, digits.TRAINED_ON + IMAGES):
        digits.write(folder / "target" / str(int(y[i])) / f"{i}.png", 0.4 * x[i])
    (folder / "target" / "0" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("source.pt", "target"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINE = ("adapt", "--source", "source.pt", "--target", "target", "--device", "cpu")


def torchrun(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in processes of a job; what torchrun itself says is left out of stderr."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(size), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith(("Error", "Interrupted"))]
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, "\n".join(ours))


@pytest.mark.slow
def test_three_processes_make_what_one_does(here: Path) -> None:
    one = CliRunner().invoke(main, [*LINE, "--out", "one.pt"])
    assert one.exit_code == 0, one.output
    three = torchrun(3, "-m", "cli", *LINE, "--out", "three.pt")
    assert three.returncode == 0, three.stderr
    assert "Processes: 3\n" in three.stdout
    assert three.stdout.replace("Processes: 3\n", "").replace("three", "one") == one.stdout
    assert not three.stderr
    state, truth = (load_checkpoint(f"{n}.pt").model.state_dict() for n in ("three", "one"))
    for name, tensor in truth.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)
    pd.testing.assert_frame_equal(pd.read_csv("three.csv"), pd.read_csv("one.csv"), rtol=1e-6)
    found, due = (json.loads(Path(f"{n}.json").read_bytes()) for n in ("three", "one"))
    assert (found["processes"], due["processes"]) == (3, 1)
    apart = {"command", "arguments", "processes", "seconds", "rows"}
    assert set(found) == set(due)
    for name in set(due) - apart:
        assert dict(leaves(found[name])) == pytest.approx(dict(leaves(due[name]))), name


@pytest.mark.slow
def test_shift_and_more_of_adapt_are_those_of_one_process(here: Path, made: Path) -> None:
    x, y = digits.images()
    for i in range(40):
        digits.write(here / "source-data" / str(int(y[i])) / f"{i}.png", x[i])
    shift = ("shift", "--model", "source.pt", "--target", "target", "--device", "cpu")
    more = ("--holdout", "0.4", "--certify", "--input-fit", "--prior", "5")
    for name, line in (("s", shift), ("a", (*LINE, *more)), ("i", (*LINE, "--method", "adain"))):
        line = (*line, "--source-data", "source-data")
        one = CliRunner().invoke(main, [*line, "--force", "--report", f"{name}1.csv"])
        assert one.exit_code == 0, one.output
        two = torchrun(2, "-m", "cli", *line, "--force", "--report", f"{name}2.csv")
        assert two.returncode == 0, two.stderr
        found, due = (pd.read_csv(f"{name}{n}.csv").set_index(["metric", "scope"]) for n in (2, 1))
        found, due = (frame.drop(index="certificate", errors="ignore") for frame in (found, due))
        pd.testing.assert_frame_equal(found, due, rtol=1e-4, atol=1e-7)


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of all that a JSON file says."""
    if isinstance(tree, (dict, list)):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{at}.{name}")
    else:
        yield at, tree


def faulty(fault: str, size: int = 2, rank: int = 1) -> str:
    """Run with a process that goes wrong; return what is said, once, and hold it to the rest."""
    before = sorted(Path().iterdir())
    more = ("--out", "out.pt", "--dist-timeout", "8")
    script = str(ROOT / "tests" / "faulty.py")
    done = torchrun(size, script, fault, str(rank), *LINE, *more)
    assert done.returncode != 0
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(Path().iterdir()) == before
    assert not _still_running(script)
    return done.stderr


def _still_running(script: str) -> list[str]:
    """Return the processes that run a script in this folder; another test may run it elsewhere."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            here = (folder / "cwd").readlink() == Path.cwd()
        except OSError:  # it has ended meanwhile
            continue
        if here and script in line and f"/proc/{os.getpid()}" != str(folder):
            found.append(line)
    return found


@pytest.mark.slow
def test_processes_with_other_arguments_are_refused(here: Path) -> None:
    assert "rank 1 differs from rank 0: seed 3 for 0: start all" in faulty("--seed=3")


@pytest.mark.slow
def test_processes_with_other_code_or_checkpoints_are_refused(here: Path, made: Path) -> None:
    assert "rank 1 differs from rank 0: adaptkit 0.0.9 for" in faulty("version")
    digits.save(here / "other.pt", CLASSES[::-1])
    said = faulty("--source=other.pt")
    assert re.search(r"rank 1 differs from rank 0: sha256 of the checkpoint \w+ for \w+", said)


@pytest.mark.slow
def test_a_process_that_raises_hangs_or_is_killed(here: Path) -> None:
    # While the source is scored, and while the sample of the statistics is read.
    said = faulty("raise:20")
    assert "Error: rank 1 of 2 failed: OSError: the disk made a noise" in said
    assert "rank 1" in faulty("kill:70")
    assert "rank 1 gave no sign of life for 8 s" in faulty("hang:20")
    assert "rank 0" in faulty("kill:20", rank=0)


@pytest.mark.slow
def test_a_stream_goes_on_in_as_many_processes(here: Path) -> None:
    small = ("--memory", "200KB", "--batch-size", "4")  # several chunks
    line = (*LINE, "--mode", "stream", "--guard", "off", *small, "--out", "out.pt")
    whole = torchrun(2, "-m", "cli", *line)
    assert whole.returncode == 0, whole.stderr
    outputs = sorted(path.name for path in Path().glob("out*"))
    due = {name: Path(name).read_bytes() for name in ("out.pt", "out.csv")}
    for name in outputs:
        Path(name).unlink()
    # One is killed when the source's scores are there, the other one then told to end.
    script = str(ROOT / "tests" / "faulty.py")
    stopped = torchrun(2, script, "kill:80", "1", *line, "--dist-timeout", "8")
    assert stopped.returncode != 0
    assert sorted(path.name for path in Path().glob("out*")) == [
        "out.pt.resume",
        "out.pt.resume.scores",
    ]
    done = torchrun(2, "-m", "cli", *line, "--resume")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Note: went on after \d+ images of a run that was stopped", done.stdout)
    assert sorted(path.name for path in Path().glob("out*")) == outputs
    assert {name: Path(name).read_bytes() for name in due} == due


def test_other_commands_and_domains_work_in_one_process(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, ["inspect", "source.pt"])
    assert result.exit_code == 1
    assert (
        result.stderr
        == "Error: `adaptkit inspect` works in one process: start it without torchrun\n"
    )
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(main, ["inspect", "source.pt"])
    assert (result.exit_code, result.stderr) == (1, "")
