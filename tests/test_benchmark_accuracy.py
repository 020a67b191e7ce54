"""The accuracy benchmarks: each runs small, and its tables and figure come out of its rows."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from adaptkit import DependencyError
from benchmarks import __main__ as program
from benchmarks import corruptions, exactness, harness, label_shift, mixtures, target_size, transfer
from benchmarks.images import MissingDataError
from benchmarks.methods import EXACT, NONE, UPDATE_BN
from benchmarks.nets import PLAIN, SMALL
from benchmarks.tables import TABLES
from benchmarks.tabulated import harm, means, seed_by_seed, spreads, verdicts, without_gain

JOBS: list[tuple[ModuleType, Any, dict[str, set[Any]]]] = [
    (
        transfer,
        transfer.Job("digits", ("digits",), SMALL, 0, 2, 40),
        {"case": {"digits to digits"}, "samples": {40}},
    ),
    (
        corruptions,
        corruptions.Job("digits", PLAIN, 0, 2, 40, ("fog", "jpeg"), (1, 5)),
        {"corruption": {"clean", "fog", "jpeg"}, "severity": {0, 1, 5}, "samples": {40}},
    ),
    (
        label_shift,
        label_shift.Job("digits", PLAIN, 0, 2, 30, ("fog",)),
        {"classes": {*label_shift.MIXES}, "corruption": {"clean", "fog"}, "images": {"digits"}},
    ),
    (
        mixtures,
        mixtures.Job("digits", PLAIN, 0, 2, 40, ("clean", "noise + blur")),
        {"mixture": {"clean", "noise + blur"}, "domains": {1, 2}, "samples": {40}},
    ),
    (
        exactness,
        exactness.Job("digits", "digits", "fog", 2, PLAIN, 0, 2, 40, (1, 16)),
        {"order": {"shuffled", "sorted by class"}, "batch": {1, 16}, "case": {"digits, fog"}},
    ),
    (
        target_size,
        target_size.Job("digits", PLAIN, 0, 2, 40, (8, 64, 256), (("clean", 0), ("fog", 2))),
        {"corruption": {"clean", "fog"}, "size": {8, 64, 256}, "samples": {40}},
    ),
]


NAMES = {
    transfer: "transfer",
    corruptions: "corruptions",
    label_shift: "label-shift",
    mixtures: "mixtures",
    exactness: "exactness",
    target_size: "target-size",
}


@cache
def run(benchmark: ModuleType, job: Any) -> pd.DataFrame:
    return pd.DataFrame(benchmark.one(job)).assign(failed=None)


@pytest.mark.parametrize(("benchmark", "job", "expected"), JOBS)
def test_a_benchmark(benchmark: ModuleType, job: Any, expected: dict[str, set[Any]]) -> None:
    pytest.importorskip("matplotlib")
    frame = run(benchmark, job)
    for column, values in expected.items():
        assert set(frame[column]) == values
    assert (frame["seed"] == 0).all()
    assert (frame["architecture"] == job.architecture).all()
    figures = ["before", "after", "change", "ci_low", "ci_high", "seconds"]
    assert frame[figures].notna().all(axis=None)
    assert frame["change"].between(frame["ci_low"], frame["ci_high"]).all()
    none = frame[frame["method"] == NONE]
    assert (none["before"] == none["after"]).all()
    assert len(none) == len(frame) / frame["method"].nunique() or benchmark is mixtures
    elsewhere = [name for name in TABLES if "digits-to-" in name or "-to-digits" in name]
    tables = [
        make(frame)
        for name, (file, make) in TABLES.items()
        if file == NAMES[benchmark] and name not in elsewhere
    ]
    assert len(tables) > 1
    assert all(table.shape[1] > 1 for table in tables)
    table = benchmark.summary(frame)
    assert table["method"].tolist() == frame["method"].unique().tolist()
    drawn = benchmark.figure(frame)
    drawn.canvas.draw()
    assert all(axes.get_title() for axes in drawn.axes)


def test_exactness_shows_in_its_rows() -> None:
    frame = run(*JOBS[4][:2])
    exact = frame[frame["method"] == EXACT]
    assert exact["after"].nunique() == 1
    assert exact["statistics off by"].max() < 1e-3
    spread = exactness.summary(frame).set_index("method")["spread, points"]
    assert spread[EXACT] == 0
    assert spread["TENT norm"] > 0
    worst = exactness.errors(frame).set_index("method")["worst"].astype(float)
    assert worst[UPDATE_BN] > 0.01 > worst[EXACT]
    assert "TENT norm" not in worst


def test_errors_shrink_with_the_target_and_as_stated() -> None:
    frame = run(*JOBS[5][:2])
    part = frame[frame["method"] == EXACT]
    assert frame[frame["method"] != EXACT]["stated error"].isna().all()
    for _, rows in part.groupby("corruption"):
        assert rows["stated error"].is_monotonic_decreasing
        assert rows["actual error"].is_monotonic_decreasing
        assert rows["actual error"].iloc[-1] == 0  # the whole pool
    table = target_size.errors(frame)
    assert table["images"].tolist() == [8, 64]
    assert table["actual / stated"].between(0.4, 2.5).all()
    by_target = target_size.by_target(frame)
    assert [*by_target.columns[:3]] == ["images", "corruption", "before"]


def rows(**changes: list[float]) -> pd.DataFrame:
    """Method exact on targets a and b, two seeds: changes from 0.5, in points."""
    found = []
    for case, values in changes.items():
        for seed, change in enumerate(values):
            row = {"case": case, "seed": seed, "net": "N", "before": 0.5, "samples": 100}
            interval = {"ci_low": change / 100 - 0.02, "ci_high": change / 100 + 0.02}
            found.append(row | {"method": NONE, "after": 0.5, "change": 0.0})
            exact = {"method": EXACT, "after": 0.5 + change / 100, "change": change / 100}
            found.append(row | exact | interval)
    return pd.DataFrame(found)


def test_tables_of_hand_made_rows() -> None:
    frame = rows(a=[10, 20], b=[-4, -3], c=[1, -1])
    assert means(frame, rows="method", across="case").to_dict("list") == {
        "method": [NONE, EXACT],
        "a": [50, 65],
        "b": [50, 46.5],
        "c": [50, 50],
    }
    assert spreads(frame, across="case").iloc[1].tolist() == [
        EXACT,
        "65.0 (60.0 to 70.0)",
        "46.5 (46.0 to 47.0)",
        "50.0 (49.0 to 51.0)",
    ]
    verdict = verdicts(frame).set_index("method").loc[EXACT]
    assert verdict["harm, % of targets"] == pytest.approx(33.3)  # both of b; -1 is not more than 1
    assert (verdict["worst change, points"], verdict["best change, points"]) == (-4, 20)
    seeds = seed_by_seed(frame, rows=["case", "net"])
    assert seeds["each seed, points"].tolist() == ["+10.0, +20.0", "-4.0, -3.0", "+1.0, -1.0"]
    lost = without_gain(frame, rows=["net"], of="case").iloc[0]
    assert lost["no gain"] == "2 of 3"
    assert lost["which, points"] == "b -3.5, c +0.0"  # by t of two seeds, ± 6.4 points
    sure = without_gain(rows(a=[-4.0, -3.9, -4.1]), rows=["net"], of="case").iloc[0]
    assert sure["which, points"] == "a -4.0*"
    wide = rows(a=[-4.0, -3.9, -4.1]).assign(ci_low=-0.1, ci_high=0.02)
    assert without_gain(wide, rows=["net"], of="case").iloc[0]["which, points"] == "a -4.0"


def test_failed_runs_are_counted_and_left_out() -> None:
    frame = rows(a=[10, 20])
    frame.loc[(frame["method"] == EXACT) & (frame["seed"] == 1), ["after", "change"]] = np.nan
    verdict = verdicts(frame).set_index("method").loc[EXACT]
    assert (verdict["accuracy, %"], verdict["targets"], verdict["failed"]) == (60, 1, 1)
    table = means(frame, rows="method", across="case")
    assert table["method"].tolist() == [NONE, EXACT]
    assert table["a"].isna().tolist() == [False, True]
    assert spreads(frame, across="case")["a"].tolist()[1] == "failed"
    assert harm(table, frame)["failed"].tolist() == [0, 1]
    assert "failed" not in harm(table, rows(a=[10, 20]))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    seen: list[bool] = []

    def ran(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
        seen.append(quick)
        frame = rows(a=[1, 2])
        return frame, means(frame, rows="method", across="case")

    def drawn(frame: pd.DataFrame) -> Any:
        return transfer.figure(frame.rename(columns={"net": "architecture"}))

    def refuses(*_: Any) -> Any:
        raise MissingDataError("apt-get install")

    def cannot_draw(_: pd.DataFrame) -> Any:
        raise DependencyError("pip install matplotlib")

    fake = {name: program.Benchmark(ran, drawn) for name in ("one", "two")}
    added = {
        "no images": program.Benchmark(refuses, drawn),
        "no plots": program.Benchmark(ran, cannot_draw),
    }
    monkeypatch.setattr(program, "BENCHMARKS", fake)
    runner = CliRunner()
    monkeypatch.setattr(program.main.params[0], "type", click.Choice([*fake, *added, "all"]))
    result = runner.invoke(program.main, ["all", "--quick", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert seen == [True, True]
    for name in fake:
        frame = pd.read_csv(tmp_path / "new" / f"{name}.csv")
        assert set(frame["command"]) == {f"python -m benchmarks {name} --quick"}
        assert (tmp_path / "new" / f"{name}.png").stat().st_size > 1000
    monkeypatch.setattr(program, "BENCHMARKS", fake | added)
    wrong = runner.invoke(program.main, ["three"])
    assert wrong.exit_code == 2
    assert "'three' is not one of" in wrong.output
    (tmp_path / "file").write_text("")
    missing = [runner.invoke(program.main, [name, "--out", str(tmp_path)]) for name in added]
    assert "skipped no images: apt-get" in missing[0].output
    assert "no figure of no plots: pip install" in missing[1].output
    assert [result.exit_code for result in missing] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new", "no plots.csv"]
    taken = runner.invoke(program.main, ["one", "--out", str(tmp_path / "file" / "below")])
    assert taken.exit_code == 1
    assert "cannot write to" in taken.output


@dataclass(frozen=True)
class Job:
    seed: int
    long: tuple[int, ...] = (1, 2, 3)


@pytest.mark.slow
def test_a_pool_keeps_the_jobs_order(capsys: pytest.CaptureFixture[str]) -> None:
    frame = harness.run_all([Job(3), Job(1), Job(2)], one_row)
    assert frame["seed"].tolist() == [3, 1, 2]
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(" ")[2] for line in said) == ["seed 1", "seed 2", "seed 3"]
    assert (frame["threads"] == "1").all()


def one_row(job: Job) -> list[dict[str, Any]]:
    assert torch.get_num_threads() == 1
    measured = dict.fromkeys(("before", "after", "change", "ci_low", "ci_high", "seconds"), 0.5)
    about = {"case": "a", "method": EXACT, "seed": job.seed, "architecture": "n"}
    return [about | measured | {"samples": 1, "peak MiB": 0.0}]
