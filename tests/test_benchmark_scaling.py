"""The benchmark of one target over processes: what it counts, and the model of large runs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from jobs import job, values
from PIL import Image
from torch import nn

from adaptkit import estimate, evaluate, norms
from adaptkit.distributed import world
from benchmarks import machine, photographs, scaling, scaling_job, scaling_model
from benchmarks.scaling_job import EVENLY, UNEVENLY, Case, Images
from benchmarks.scaling_model import Assumed, Measured, Plan
from benchmarks.traffic import counted

CHANNELS = (8, 5, 8)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        shared = nn.BatchNorm2d(8)  # visited twice
        head = nn.Flatten(), nn.Linear(8, 4)
        body = nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 8, 3)
        return nn.Sequential(*body, shared, nn.AdaptiveAvgPool2d(1), *head).eval()


def work() -> dict[str, Any]:
    images = Images(14, 16).pixels.float() / 255
    own = list(images[dist.get_rank() :: 2].split(3))
    original = dist.all_reduce, dist.distributed_c10d.all_gather
    with counted() as of_estimate:
        estimate(net(), own, samples="all")
    with counted() as of_gather:
        world().gather(bytes(1000))
    with counted() as of_first:
        world().first("a")
    with counted() as of_evaluation:
        evaluate(net(), own)
    assert original == (dist.all_reduce, dist.distributed_c10d.all_gather)
    return {
        "estimate": of_estimate,
        "gather": of_gather,
        "first": of_first,
        "evaluate": of_evaluation,
    }


@pytest.mark.slow
def test_what_is_handed_over_is_what_the_formula_says() -> None:
    found = values(job(2, work))
    for traffic in found:
        visits = traffic["estimate"]
        assert visits.all_reduces == len(CHANNELS)
        # Whether one failed, seconds, three counts, and eight figures a channel, float64.
        assert visits.bytes_all_reduced == sum(8 * (2 + 3 + 8 * c) for c in CHANNELS)
        assert visits.operations > visits.all_reduces
        assert visits.bytes_handed > visits.bytes_all_reduced
        assert visits.waited > 0
        gathered = traffic["gather"]
        assert (gathered.operations, gathered.all_reduces) == (2, 0)  # sizes, then the objects
        assert 1008 <= gathered.bytes_handed <= 1100
        assert traffic["first"].operations == 2
        assert traffic["evaluate"].all_reduces == 0
    assert found[0]["estimate"].bytes_handed == found[1]["estimate"].bytes_handed


def test_a_single_process_hands_over_nothing() -> None:
    with counted() as traffic:
        estimate(net(), [Images(4, 16).pixels.float()])
    assert (traffic.operations, traffic.bytes_handed, traffic.waited) == (0, 0, 0.0)


def ran(case: Case, place: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return scaling_job.ran(case, world(), place / "found.npy")


@pytest.mark.parametrize("dealt", [EVENLY, UNEVENLY])
def test_two_processes_find_what_one_finds(dealt: str, tmp_path: Path) -> None:
    case = Case("exact", "resnet18", 32, 12, dealt, torch.float64)
    place = tmp_path / "alone.npy"
    alone = scaling_job.ran(case, world(), place)
    first, second = values(job(2, ran, case, tmp_path))
    assert scaling.difference(np.load(tmp_path / "found.npy"), np.load(place)) <= 1e-10
    assert first == second
    assert (alone["operations"], alone["waiting %"]) == (0, 0)
    assert first["all-reduces"] == 20
    layers = norms.norm_layers(scaling_job.MODELS["resnet18"]())
    channels = [len(norms.read(layer).mean) for layer in layers.values()]
    assert first["bytes all-reduced"] == sum(64 * c + 40 for c in channels)
    assert 0 < first["waiting %"] <= first["longest waiting %"] <= 100
    assert first["samples"] == 12


def test_images_are_the_same_in_all_processes_and_unlike() -> None:
    images = Images(3, 16)
    assert torch.equal(images.pixels, Images(3, 16).pixels)
    assert images.pixels.shape == (3, 3, 16, 16)
    x, label = images[2]
    assert (x.dtype, label) == (torch.float32, 2)
    assert not torch.equal(images.pixels[0], images.pixels[1])


def test_photographs_have_the_size_that_was_asked_for(tmp_path: Path) -> None:
    photographs.write(tmp_path / "a", 3, 96)
    files = sorted((tmp_path / "a").iterdir())
    assert [path.suffix for path in files] == [".jpg"] * 3
    for path in files:
        with Image.open(path) as image:
            assert image.size == (96, 96)
    assert files[0].read_bytes() != files[1].read_bytes()


def rows() -> list[dict[str, Any]]:
    """As a job returns them, of any number of processes."""
    work = {"operations": 10, "all-reduces": 4, "bytes all-reduced": 1e6, "bytes handed": 1.5e6}
    work |= {"waiting %": 10.0, "standard error": 0.1, "agree": 1e-6, "samples": 100}
    of = {"seconds": 8.0, "architecture": "resnet50"}
    return [
        {"case": "100 images", "method": "exact", **of, **work},
        {"case": "100 images, one has 4 times", "method": "exact", **of, **work},
        {"case": "100 images", "method": "stream", **of, **work},
        {"case": "100 images", "method": "evaluate", **of, **work},
        {"case": "64 channels", "method": "all-reduce", "bytes handed": 4128, "seconds": 1e-3},
        {"case": "128 channels", "method": "all-reduce", "bytes handed": 8224, "seconds": 3e-3},
        {"case": "a few bytes", "method": "gather", "seconds": 0.1},
        {"case": "JPEG", "method": "decode", "samples": 50, "seconds": 0.1},
        {"case": "224 px", "method": "waiting activations", "architecture": "resnet50"}
        | {"bytes a sample": 8_000_000, "visits": 4},
        {"case": "names", "method": "list", "samples": 1000, "seconds": 1e-3, "bytes a sample": 9},
        {"case": "order", "method": "draw", "samples": 1000, "seconds": 1e-5, "bytes a sample": 8},
    ]


def job_of(monkeypatch: pytest.MonkeyPatch, apart: float = 0.0) -> None:
    """Let jobs take 8 s of one process, 4 of more, and find statistics that lie apart."""

    def fake(count: int, module: str, folder: Path, *options: str) -> list[dict[str, Any]]:
        assert module == "benchmarks.scaling_job"
        assert len(list((folder / "photographs-224").iterdir())) == 32
        for number in range(3):
            found = np.array([[apart if count > 1 else 0.0], [1.0]])
            np.save(folder / f"found-{number}.npy", found)
        faster = {"seconds": 8.0 / min(count, 2)}
        return [row | faster if "operations" in row else row for row in rows()]

    monkeypatch.setattr(scaling, "in_fresh_job", fake)


def frame_of(monkeypatch: pytest.MonkeyPatch, apart: float = 0.0) -> pd.DataFrame:
    job_of(monkeypatch, apart)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return scaling.run(quick=True)[0]


def test_the_table_has_a_row_a_case_and_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = frame_of(monkeypatch, 1e-7)
    assert list(frame.columns[:6]) == [
        *("case", "architecture", "method", "processes", "round", "samples")
    ]
    assert set(machine.described()) <= set(frame.columns)
    table = scaling.summary(frame)
    assert table["processes"].tolist() == [1, 2] * 4
    assert table["speed, 1 process = 1"].tolist() == [1.0, 2.0] * 4
    assert table["efficiency"].tolist() == [1.0] * 8
    assert table["kB handed over"].tolist() == [1500.0] * 8
    assert table["largest difference"].tolist()[:2] == [0, 1e-7]
    read_back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(scaling.summary(read_back), table, check_dtype=False)


@pytest.mark.parametrize("apart", [1e-5, float("nan")])
def test_other_statistics_are_refused(apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="100 images: 2 processes found statistics"):
        frame_of(monkeypatch, apart)


def test_the_figure_shows_speed_and_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    speed, latency = scaling.figure(frame_of(monkeypatch)).axes
    labels = [str(line.get_label()) for line in speed.lines]
    assert labels[:2] == ["ideal", "cores of this machine: 2"]
    assert len(labels) == 6
    assert np.asarray(speed.lines[2].get_ydata()).tolist() == [1, 2]
    assert np.asarray(latency.lines[0].get_ydata()).tolist() == [1e3, 3e3]


def test_the_model_reads_its_constants_from_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured.of(frame_of(monkeypatch))
    assert measured == Measured(4, 1e6, 3.0, 5e5, 1.5e6, 500.0, 8e6, measured.error)
    assert measured.error == pytest.approx(0.1 * 10)


MEASURED = Measured(50, 2e6, 10, 1e6, 3e6, decode=500, waiting=8e6, error=1.0)
ASSUMED = Assumed(10, 1000, 4, 1e-3, 1e9, 0.1, 32e9)


def test_the_cost_of_an_exact_run() -> None:
    found = scaling_model.cost(Plan("", 100_000), MEASURED, ASSUMED)
    assert found.held == 10_000 * 8e6 * 1.25
    assert found.reading == 100_000 / (10 * 4 * 500)
    assert found.forward == 100_000 / (10 * 1000)
    assert (found.all_reduces, found.handed) == (50, 3e6)
    # 50 all-reduces and 10 gathers wait; 2 MB go twice; ten processes' 1 MB come to each.
    assert found.talking == pytest.approx(50e-3 + 10 * 0.1 + 2 * 2e6 / 1e9 + 10 * 1e6 / 1e9)
    assert found.seconds == pytest.approx(5 + 10 + found.talking)


def test_a_tolerance_passes_its_images_up_to_twice() -> None:
    one = scaling_model.cost(Plan("", 128), MEASURED, ASSUMED)
    three = scaling_model.cost(Plan("", 512, rounds=3), MEASURED, ASSUMED)
    assert three.all_reduces == 3 * one.all_reduces
    assert three.forward == pytest.approx((128 + 256 + 512) / (10 * 1000))
    assert three.reading == 4 * one.reading  # each image is read once


def test_streaming_reads_and_computes_at_once_and_merges_once() -> None:
    found = scaling_model.cost(Plan("", 1e6, exact=False), MEASURED, ASSUMED)
    assert (found.held, found.all_reduces, found.handed) == (0, 0, 3e6)
    assert found.seconds == pytest.approx(max(50, 100) + found.talking)


def test_a_tolerance_draws_as_many_as_its_error_needs() -> None:
    every = {plan.name: plan for plan in scaling_model.plans(MEASURED, 1e9)}
    drawn = every["`tolerance=0.003`"]
    assert drawn.images >= (1 / 0.003) ** 2 > drawn.images / 2
    assert drawn.images == 128 * 2 ** (drawn.rounds - 1)
    assert all(plan.images <= 500 for plan in scaling_model.plans(MEASURED, 500))


def test_tables_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(monkeypatch)
    worked = scaling_model.worked(frame)
    assert worked["in all"].tolist()[4] == "does not fit"
    assert worked["images"].tolist()[1] == "100,000"
    assert len(scaling_model.assumed_table(frame)) == len(vars(Assumed()))
    assert scaling_model.measured_table(frame)["value"].notna().all()
    assert scaling_model.by_gpus(frame)["GPUs"].tolist() == [8, 64, 512]
    checked = scaling_model.check(frame)
    # 8 s over two cores, four all-reduces of 2 ms (the median) and three gathers of 0.1 s.
    assert checked["on paper, s"].tolist() == [round(4 + 4 * 2e-3 + 0.3, 2)]
    assert checked["measured, s"].tolist() == [4.0]


def test_the_model_runs_with_other_constants() -> None:
    few, many = (
        CliRunner().invoke(scaling_model.main, ["--gpus", number, "--images", "1e6"])
        for number in ("8", "512")
    )
    assert few.exit_code == many.exit_code == 0
    assert few.output != many.output
    assert "1,000,000" in few.output
