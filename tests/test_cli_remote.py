"""The commands with URLs: figures as of a folder here, one line where a network fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import digits
import numpy as np
import pytest
from click.testing import CliRunner, Result
from jobs import job, values
from safetensors.torch import load_file
from served import Served, impatient, served

from adaptkit import load_checkpoint
from adaptkit.pipeline import adapt_folder
from cli import main

IMAGES = 40
CLASSES = [str(k) for k in range(10)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.pt, target/CLASS, dark, and own/CLASS, as the model knows them."""
    folder = tmp_path_factory.mktemp("remote")
    digits.save(folder / "source.pt", CLASSES)
    x, y = digits.images()
    for i in range(IMAGES):
        digits.write(folder / "own" / str(int(y[i])) / f"{i}.png", x[i])
        n = digits.TRAINED_ON + i
        digits.write(folder / "target" / str(int(y[n])) / f"{n}.png", 0.4 * x[n])
    return folder


@pytest.fixture
def web(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The same on a server; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with impatient(monkeypatch), served(made) as found:
        yield found


def run(command: str, *words: object) -> Result:
    line = [command, *map(str, words), "--device", "cpu"]
    return CliRunner().invoke(main, line)


def fails(message: str, command: str, *words: object) -> None:
    """Hold a run to one line on stderr, and an empty folder."""
    done = run(command, *words)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list(Path().iterdir())


def assert_same_model(first: str, second: str) -> None:
    """Hold two checkpoints to the same tensors, bit for bit."""
    a, b = (load_checkpoint(name).model.state_dict() for name in (first, second))
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor.numpy(), b[name].numpy(), err_msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_adapt_finds_the_same_as_in_the_folder_and_fetches_each_image_once(
    made: Path, web: Served, workers: int
) -> None:
    source = "--source", made / "source.pt"
    options = "--workers", workers
    here = made / "target", "--source-data", made / "own"
    there = web.url + "target/", "--source-data", web.url + "own"
    first = run("adapt", *source, "--target", *here, "--out", "here.pt", *options)
    second = run("adapt", *source, "--target", *there, "--out", "there.pt", *options)
    assert first.exit_code == second.exit_code == 0, second.output
    assert second.stdout == first.stdout.replace("here", "there")
    assert_same_model("here.pt", "there.pt")
    assert Path("here.csv").read_bytes() == Path("there.csv").read_bytes()
    images = [path for path in web.asked if path.endswith(".png")]
    assert len(images) == len(set(images)) == 80


def test_no_secret_is_written_or_printed(made: Path, web: Served) -> None:
    secret = web.url.replace("://", "://someone:passw7xyq81@")
    ending = "?X-Amz-Signature=signed9w77qz#fragment3vj2kq"
    web.faults["/target/1/901.png"] = [403, "always"]
    source = "--source", made / "source.pt"
    where = "--target", secret + "target/" + ending, "--source-data", secret + "own" + ending
    done = run("adapt", *source, *where)
    assert done.exit_code == 0, done.output
    done_too = run("shift", "--model", made / "source.pt", *where)
    assert done_too.exit_code == 0, done_too.output
    web.faults["/target/"] = [401, "always"]
    refused = run("adapt", *source, *where, "--force")
    assert f"Error: cannot list {web.url}target/: HTTP 401 Unauthorized" in refused.stderr
    written = [path.read_bytes() for path in Path().iterdir()]
    assert len(written) == 7
    for text in (*written, *(r.output.encode() for r in (done, done_too, refused))):
        for word in (b"passw7xyq81", b"signed9w77qz", b"fragment3vj2kq", b"someone"):
            assert word not in text
    said = json.loads(Path("source-adapted.json").read_bytes())
    assert said["arguments"]["target"] == web.url + "target/"
    assert f"--target {web.url}target/ " in said["command"]


def test_images_that_cannot_be_had_are_named(made: Path, web: Served) -> None:
    names = sorted(path.relative_to(made).as_posix() for path in made.glob("target/*/*.png"))
    web.faults.update({f"/{names[0]}": [404], f"/{names[1]}": [503, "always"]})
    done = run("adapt", "--source", made / "source.pt", "--target", web.url + "target")
    assert done.exit_code == 0, done.output
    said = json.loads(Path("source-adapted.json").read_bytes())
    assert said["skipped"] == {
        names[0].removeprefix("target/"): "not there any more",
        names[1].removeprefix("target/"): "HTTP 503 Service Unavailable",
    }
    assert said["samples"]["evaluated"] == IMAGES - 2


def test_one_line_and_nothing_written_where_there_is_no_target(made: Path, web: Served) -> None:
    source = "--source", made / "source.pt", "--target"
    fails(f"there is no folder {web.url}nothing/", "adapt", *source, web.url + "nothing")
    fails("no protocol 'abc' is known", "adapt", *source, "abc://bucket/images")
    fails("no connection to 127.0.0.1", "adapt", *source, "http://127.0.0.1:1/images")
    fails(f"there is no {web.url}a.csv", "adapt", *source, f"{web.url}a.csv", "--domains", "folder")
    for name in made.glob("target/*/*.png"):
        web.faults[f"/{name.relative_to(made).as_posix()}"] = [403, "always"]
    fails(
        f"none of the 40 images in {web.url}target can be read, the first being",
        *("adapt", *source, web.url + "target"),
    )
    fails("there is no folder", "calibrate", *source[:2], "--source-data", web.url + "nothing")


def test_calibrate_and_many_domains(made: Path, web: Served) -> None:
    source = "--source", made / "source.pt"
    folders = "--domains", "folder", "--target"
    for name, where in (("here", f"{made}/"), ("there", web.url)):
        words = "--source-data", f"{where}own", "--out", f"{name}.pt"
        done = run("calibrate", *source, *words)
        assert done.exit_code == 0, done.output
        done = run("adapt", *source, *folders, f"{where}target", "--out", name)
        assert done.exit_code == 0, done.output
    assert load_checkpoint("here.pt").calibration
    assert Path("here.pt").read_bytes() == Path("there.pt").read_bytes()
    packs = sorted(path.name for path in Path("here").glob("*.safetensors"))
    assert len(packs) == 10
    for pack in packs:
        first, second = load_file(f"here/{pack}"), load_file(f"there/{pack}")
        for key, tensor in first.items():
            np.testing.assert_array_equal(tensor.numpy(), second[key].numpy())
    web.asked.clear()
    again = run("adapt", *source, *folders, f"{web.url}target", "--out", "there")
    assert "10 were there already" in again.output
    assert not [path for path in web.asked if path.endswith(".png")]


@pytest.mark.slow
def test_processes_of_a_job_read_their_parts(made: Path, web: Served) -> None:
    adapt_folder(made / "source.pt", made / "target", out="one.pt", device="cpu")
    counts = values(job(2, _adapt, str(made / "source.pt"), web.url + "target", str(Path.cwd())))
    assert counts == [IMAGES, IMAGES]
    a, b = (load_checkpoint(name).model.state_dict() for name in ("one.pt", "two.pt"))
    for name, tensor in a.items():
        np.testing.assert_allclose(tensor.numpy(), b[name].numpy(), rtol=1e-6, atol=1e-6)
    images = [path for path in web.asked if path.endswith(".png")]
    assert len(set(images)) == IMAGES


def _adapt(source: str, target: str, folder: str) -> int:
    os.chdir(folder)
    return adapt_folder(source, target, out="two.pt", device="cpu").images


@pytest.mark.slow
def test_the_command_itself_says_one_line_and_ends(made: Path, web: Served) -> None:
    web.faults["/target/"] = ["reset", "always"]
    root = Path(__file__).parent.parent
    line = ["adapt", "--source", str(made / "source.pt"), "--target", web.url + "target"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cli", *line],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot list {web.url}target/: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/target/", "/own/1/1.png", "/a.npy"])
def test_ctrl_c_ends_a_run_that_waits_for_a_server(made: Path, web: Served, path: str) -> None:
    web.faults[path] = ["silent", "always"]
    where = web.url + path.split("/")[1]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "adapt", "--source", made / "source.pt", "--target", where],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 60
    while path not in web.asked and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=15)  # and not the 150 seconds of all patience
    assert (process.returncode, said.strip()) == (130, "Interrupted.")
    assert not list(Path().iterdir())
