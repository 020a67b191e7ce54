"""`adaptkit adapt --mode stream --resume`: killed at any moment, it ends as if it had not been."""

import json
import os
import shlex
import signal
import tarfile
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from click.testing import CliRunner, Result
from jobs import job, values

from adaptkit import ImageLoader, load_checkpoint
from adaptkit.estimation import resuming
from cli import main

CLASSES = [str(k) for k in range(10)]
IMAGES = 600
LINE = ("adapt", "--source", "source.pt", "--target", "target", "--device", "cpu")
STREAM = (*LINE, "--mode", "stream", "--samples", "all", "--guard", "off", "--skip-bad")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.pt and target/, dark images of which two cannot be read."""
    folder = tmp_path_factory.mktemp("resume")
    digits.save(folder / "source.pt", CLASSES)
    x, y = digits.images()
    for i in range(digits.TRAINED_ON, digits.TRAINED_ON + IMAGES):
        digits.write(folder / "target" / str(int(y[i])) / f"{i}.png", 0.4 * x[i])
    for name in ("0", "7"):
        (folder / "target" / name / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("source.pt", "target"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resuming, "SECONDS_APART", 0.0)
    return tmp_path


def run(*line: str) -> Result:
    return CliRunner().invoke(main, list(line))


def counting(monkeypatch: pytest.MonkeyPatch, end: Any = None, after: int = -1) -> list[int]:
    """Count the images that are asked for, in the one entry of a list; before one call `end`."""
    count, read = [0], ImageLoader._found

    def counted(self: ImageLoader, *which: Any) -> Any:
        if count[0] == after:
            end()
        count[0] += 1
        return read(self, *which)

    monkeypatch.setattr(ImageLoader, "_found", counted)
    return count


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    raise KeyboardInterrupt


def work(folder: str, after: int, line: tuple[str, ...]) -> tuple[int, str, int]:
    os.chdir(folder)
    resuming.SECONDS_APART = 0.0
    with pytest.MonkeyPatch.context() as patch:
        count = counting(patch, killed, after)
        done = run(*line)
        return done.exit_code, done.output, count[0]


def results(name: str) -> dict[str, Any]:
    """Return what a run found, to the last bit, without what it took."""
    report = json.loads(Path(f"{name}.json").read_bytes())
    apart = ("command", "arguments", "seconds", "processes")
    state = load_checkpoint(f"{name}.pt").model.state_dict()
    return {
        **{key: value for key, value in report.items() if key not in apart},
        "notes": [note for note in report["notes"] if not note.startswith("went on")],
        "csv": Path(f"{name}.csv").read_text(),
        "state": {key: value.tolist() for key, value in state.items()},
    }


def there() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"source.pt", "target"}


OUTPUTS = {f"out{end}" for end in (".pt", ".csv", ".json", ".html", "-confusion.csv")}
PASS = IMAGES + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "moments"),
    [
        ((), (0.2, 0.9, 1.2, 1.6, 2.2, 2.9)),
        (("--holdout", "0.3", "--stats-only"), (0.9, 1.2)),
        (("--input-fit",), (1.6, 2.9)),
    ],
)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    here: Path, words: tuple[str, ...], moments: tuple[float, ...]
) -> None:
    end = ".safetensors" if words and words[0] == "--holdout" else ".pt"
    line = (*STREAM, *words, "--out", f"out{end}")
    truth = run(*line)
    assert truth.exit_code == 0, truth.output
    whole = there()
    due = {name: Path(name).read_bytes() for name in (f"out{end}", "out.csv")}
    for moment in moments:
        for name in whole:
            Path(name).unlink()
        (ended,) = job(1, work, str(here), int(moment * PASS), (*line, "--resume"))
        assert ended.code == -signal.SIGKILL
        assert not there() & whole
        ((code, output, _),) = values(job(1, work, str(here), -1, (*line, "--resume")))
        assert code == 0, output
        assert there() == whole
        assert {name: Path(name).read_bytes() for name in due} == due, moment


def test_scores_and_moments_are_not_made_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (*STREAM, "--out", "out.pt")
    assert run(*line).exit_code == 0
    truth = results("out")
    for name in OUTPUTS:
        Path(name).unlink()
    with monkeypatch.context() as patch:
        counting(patch, interrupted, PASS + 400)  # in the estimation, beyond a first chunk of 256
        stopped = run(*line)
    assert stopped.exit_code == 130
    said, _, how = stopped.stderr.strip().partition(" Go on with: ")
    assert said == "Interrupted."
    program, *told = shlex.split(how)
    assert (program, sorted(told)) == ("adaptkit", sorted((*line, "--resume")))
    assert there() == {"out.pt.resume", "out.pt.resume.scores"}
    with monkeypatch.context() as patch:
        count = counting(patch)
        done = run(*told)
    assert done.exit_code == 0, done.output
    assert count[0] <= PASS - 256 + PASS + len(CLASSES) * 10  # the rest, the scores after, pictures
    assert "Note: went on after 256 images of a run that was stopped.\n" in done.stdout
    assert there() == OUTPUTS
    assert results("out") == truth
    skipped = json.loads(Path("out.json").read_bytes())["skipped"]
    assert sorted(skipped) == ["0/broken.png", "7/broken.png"]


def test_what_was_stopped_is_not_lost_unasked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        counting(patch, interrupted, PASS + 400)
        assert run(*STREAM).exit_code == 130
    kept = {name: Path(name).read_bytes() for name in there()}
    refused = run(*STREAM)
    assert refused.exit_code == 1
    assert refused.stderr == (
        "Error: source-adapted.pt.resume is of a run that was stopped: give --resume to go on, or "
        "--force to begin anew\n"
    )
    for change, named in (
        (("--seed", "1"), "seed 0, now 1"),
        (("--samples", "500"), "samples all, now 500"),
        (("--layers", "features.1"), "layers"),
    ):
        refused = run(*STREAM, *change, "--resume")
        assert refused.exit_code == 1
        assert refused.stderr.startswith("Error: source-adapted.pt.resume")
        assert named in refused.stderr
        assert refused.stderr.endswith("or remove the file to begin anew\n")
    Path("source-adapted.pt.resume").write_bytes(b"torn")
    refused = run(*STREAM, "--resume")
    assert refused.stderr.startswith("Error: source-adapted.pt.resume is broken, or no file of")
    Path("source-adapted.pt.resume").write_bytes(kept["source-adapted.pt.resume"])
    assert {name: Path(name).read_bytes() for name in there()} == kept
    assert run(*STREAM, "--force", "--target", "none").exit_code == 1
    assert {name: Path(name).read_bytes() for name in there()} == kept
    anew = run(*STREAM, "--force")
    assert anew.exit_code == 0, anew.output
    assert "went on" not in anew.stdout
    assert not [name for name in there() if "resume" in name]


def test_an_image_that_changed_is_something_else(
    here: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        counting(patch, interrupted, PASS + 400)
        assert run(*STREAM).exit_code == 130
    one = next(made.glob("target/3/*.png"))
    times = one.stat().st_atime_ns, one.stat().st_mtime_ns
    os.utime(one, ns=(times[0], times[1] + 1))
    refused = run(*STREAM, "--resume")
    os.utime(one, ns=times)
    assert refused.exit_code == 1
    assert "checksum of the images" in refused.stderr
    assert run(*STREAM, "--resume").exit_code == 0


def test_resume_is_of_streams_and_begins_where_there_is_nothing(here: Path) -> None:
    for words in ((), ("--mode", "stream", "--domains", "auto")):
        refused = run(*LINE, "--resume", *words)
        assert refused.exit_code == 1
        assert "only a run with --mode stream, on one domain, can go on" in refused.stderr
    assert run(*LINE, "--resume", "--method", "adain").exit_code == 1
    refused = run(*LINE, "--resume", "--domains", "folder")
    assert refused.exit_code == 2
    assert "leave out --resume" in refused.stderr
    assert there() == set()
    done = run(*STREAM, "--resume")
    assert done.exit_code == 0, done.output
    assert "went on" not in done.stdout


def test_what_the_guard_does_not_stream_needs_no_file(here: Path) -> None:
    done = run(*LINE, "--mode", "stream", "--resume")
    assert done.exit_code == 0, done.output
    assert not [name for name in there() if "resume" in name]


def test_ctrl_c_among_domains_says_the_same_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        counting(patch, interrupted, 100)
        stopped = run(*LINE, "--domains", "folder")
    assert stopped.exit_code == 130
    assert stopped.stderr.strip() == (
        "Interrupted. Go on with: adaptkit adapt --source source.pt --target target --device cpu "
        "--domains folder"
    )


def test_ctrl_c_where_nothing_is_kept_says_no_more(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in (LINE, STREAM):
        with monkeypatch.context() as patch:
            counting(patch, interrupted, 100)
            stopped = run(*line)
        assert (stopped.exit_code, stopped.stderr.strip()) == (130, "Interrupted.")
    assert there() == set()


def test_so_it_is_of_tar_files(here: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which give what the folder gives that was packed into them."""
    files = sorted((made / "target").glob("*/*.png"))
    for number in range(3):
        with tarfile.open(here / f"shard-{number}.tar", "w") as archive:
            for file in files[number::3]:
                archive.add(file, file.relative_to(made / "target").as_posix())
    packed = [*STREAM, "--out", "packed.pt", "--seed", "3", "--report", "packed.csv"]
    packed[packed.index("target")] = "shard-{0..2}.tar"
    with monkeypatch.context() as patch:
        counting(patch, interrupted, PASS + 400)
        assert run(*packed).exit_code == 130
    done = run(*packed, "--resume")
    assert done.exit_code == 0, done.output
    report = json.loads(Path("packed.json").read_bytes())
    assert [name[len("shard-0.tar/") :] for name in sorted(report["skipped"])] == [
        "0/broken.png",
        "7/broken.png",
    ]
    exact = (*LINE, "--samples", "all", "--guard", "off", "--out", "folder.pt")
    assert run(*exact).exit_code == 0
    packed = [word if word != "target" else "shard-{0..2}.tar" for word in exact]
    assert run(*packed[:-1], "exact.pt").exit_code == 0
    found, due = (load_checkpoint(f"{n}.pt").model.state_dict() for n in ("exact", "folder"))
    for name, tensor in due.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    rows = [json.loads(Path(f"{n}.json").read_bytes())["rows"] for n in ("exact", "folder")]
    accuracies = [[row["after"] for row in some if row["metric"] == "accuracy"] for some in rows]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_so_it_is_of_a_segmentation_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))\n"
    )
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 3, 1)
    )
    torch.save(net.state_dict(), "pixels.pt")
    images = ("--image-size", "8", "--mean", "0.5", "--std", "0.5", "--channels", "1")
    line = ("adapt", "--source", "pixels.pt", "--arch", "nets.py:make", *images, *STREAM[3:])
    truth = run(*line, "--out", "truth.pt")
    assert truth.exit_code == 0, truth.output
    with monkeypatch.context() as patch:
        counting(patch, interrupted, PASS + 400)
        assert run(*line, "--out", "out.pt").exit_code == 130
    assert run(*line, "--out", "out.pt", "--resume").exit_code == 0
    assert Path("out.csv").read_bytes() == Path("truth.csv").read_bytes()
