"""`adaptkit demo`: the figures it promises, and the line it prints."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from cli import main


def demo(*args: str) -> Result:
    return CliRunner().invoke(main, ["demo", *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = demo("--out", str(folder))
    assert result.exit_code == 0, result.output
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


def accuracy(path: Path) -> tuple[float, float]:
    row = pd.read_csv(path).query("metric == 'accuracy'").iloc[0]
    return row.before * 100, row.after * 100


def test_what_helps_and_what_does_not(folder: Path) -> None:
    before, after = accuracy(folder / "source-adapted.csv")
    assert after - before > 30
    before, after = accuracy(folder / "source-adapted-target-clean.csv")
    assert before > 90
    assert abs(after - before) < 3
    before, after = accuracy(folder / "source-adapted-target-inverted.csv")
    assert before < 40
    assert after < 40
    assert accuracy(folder / "source-adapted-target-bright.csv")[0] < 60


def test_what_it_writes(folder: Path) -> None:
    labelled = sorted((folder / "target").rglob("*.png"))
    flat = sorted((folder / "target-unlabelled").iterdir())
    assert len(labelled) == len(flat) == 897
    assert {p.parent.name for p in labelled} == set("0123456789")
    by_name = {p.name: p.read_bytes() for p in labelled}
    assert {p.name: p.read_bytes() for p in flat} == by_name
    frame = pd.read_csv(folder / "source-adapted-target-unlabelled.csv")
    assert "accuracy" not in set(frame.metric)


def test_it_says_what_is_real_and_what_is_not(folder: Path) -> None:
    text = (folder / "stdout.txt").read_text()
    assert "The images are real" in text
    assert "The shifts are\nsynthetic" in text
    for shift in ("low contrast + noise", "clean (no shift)", "brightness +0.4", "inverted"):
        assert shift in text
    paths = ("$", "Wrote", "Without", f"  {folder}")
    prose = [line for line in text.splitlines() if not line.startswith(paths)]
    assert max(map(len, prose)) <= 80


def test_the_printed_line_repeats_the_run(folder: Path) -> None:
    text = (folder / "stdout.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith("$ adaptkit adapt"))
    files = [folder / "source-adapted.csv", folder / "source-adapted.json"]
    csv, record = files[0].read_bytes(), json.loads(files[1].read_text())
    state = torch.load(folder / "source-adapted.pt", weights_only=True)["state_dict"]
    result = CliRunner().invoke(main, shlex.split(line)[2:])
    assert result.exit_code == 0, result.output
    assert files[0].read_bytes() == csv
    assert json.loads(files[1].read_text())["arguments"] == record["arguments"]
    again = torch.load(folder / "source-adapted.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_statistics_do_not_depend_on_batches(folder: Path, tmp_path: Path) -> None:
    states = []
    for size in ("7", "64", "897"):
        line = ["adapt", "--source", str(folder / "source.pt"), "--target", str(folder / "target")]
        line += ["--out", str(tmp_path / f"{size}.pt"), "--batch-size", size, "--device", "cpu"]
        assert CliRunner().invoke(main, line).exit_code == 0
        states.append(torch.load(tmp_path / f"{size}.pt", weights_only=True)["state_dict"])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states[2][key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_runs_again_over_its_own_files_and_spares_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = torch.load(folder / "source.pt", weights_only=True)["state_dict"]
    result = demo("--out", str(folder), "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    again = torch.load(folder / "source.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(again[k], source[k]) for k in source)
    (tmp_path / "mine.txt").write_text("keep")
    result = demo("--out", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "was not made by the demo" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    monkeypatch.chdir(tmp_path)
    assert demo("--out", "mine.txt").stderr == "Error: cannot write to mine.txt: File exists\n"
