"""The benchmarks of cost against size and of many domains: who reads what, what rows come to."""

import io
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import cost, domains, machine, precise_bn
from benchmarks.cost import METHODS, Images
from benchmarks.norm_net import ResidualNet

FVCORE = [method for method in METHODS if method.startswith("fvcore")]


def stem(model: torch.nn.Module) -> torch.nn.BatchNorm2d:
    assert isinstance(model, ResidualNet)
    norm = model.body[1]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    return norm


def used(method: str, images: int) -> tuple[int, int, torch.nn.Module]:
    """How many images a method says it used, how many it had made, and the model after it."""
    if method in FVCORE and not precise_bn.installed():
        pytest.skip(precise_bn.HINT)
    model, data = cost.net(), Images(images)
    samples = cost.adapting(method, model, DataLoader(data, cost.BATCH))()
    return samples, data.made, model


def test_images_are_made_from_their_index_alone() -> None:
    data = Images(3)
    images = [data[i] for i in range(3)]
    assert [x.shape for x in images] == [(1, 28, 28)] * 3
    assert torch.equal(images[2], Images(9)[2])
    assert not torch.equal(images[1], images[2])
    assert (len(data), data.made) == (3, 3)
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_the_means_of_the_target(method: str) -> None:
    images = 2 * cost.BATCH  # where update_bn, which weighs batches alike, is exact too
    samples, made, model = used(method, images)
    assert samples == made == images
    x = torch.stack([Images(images)[i] for i in range(images)]).to(machine.device())
    with torch.no_grad():
        y: Tensor = cost.net().get_submodule("body.0")(x)
    found = stem(model).running_mean
    expected = torch.zeros_like(y[0, :, 0, 0]) if method == "eval forward" else y.mean((0, 2, 3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_flat_method_reads_only_what_it_uses() -> None:
    for method in ("adaptkit exact", "adaptkit exact, tolerance 5%"):
        samples, made, _ = used(method, 1100)
        assert samples == made <= 1024
    assert used("adaptkit exact", 1100)[0] == 1024


@pytest.mark.parametrize("method", ["adaptkit stream, all", "torch update_bn", "eval forward"])
def test_a_linear_method_reads_all(method: str) -> None:
    assert used(method, 1100)[:2] == (1100, 1100)


@pytest.mark.parametrize(("method", "images"), [*zip(FVCORE, (150, 128), strict=True)])
def test_precise_bn_reads_its_batches(
    method: str, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "USUAL", 2)
    samples, made, _ = used(method, 150)
    assert samples == made == images


def test_the_whole_runs_where_fvcore_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fvcore", "fvcore.nn.precise_bn"):
        monkeypatch.setitem(sys.modules, name, None)

    def fake(module: str, method: str, images: int) -> dict[str, Any]:
        assert module == "benchmarks.cost"
        return {
            "samples": images,
            "seconds": images / 1e3,
            "user s": 1.0,
            "system s": 0.0,
            "peak MiB": 1.0,
        }

    monkeypatch.setattr(cost, "in_fresh_process", fake)
    frame, table = cost.run(quick=False)
    there = [method for method in METHODS if method not in FVCORE]
    assert list(table["method"]) == there
    assert '".[bench]"' in capsys.readouterr().err
    names = "case architecture method round images samples seconds"
    assert [*names.split(), "user s", "system s", "peak MiB"] == [*frame.columns[:10]]
    assert set(machine.described()) == set(frame.columns[10:])
    assert len(frame) == (3 + 3 + 1 + 1) * len(there)
    assert list(frame["method"][: len(there)]) == there  # in turn


def costs() -> pd.DataFrame:
    """A flat method and a linear one, with an outlier in the first round."""
    rows = [
        {"method": method, "round": number, "images": images, "seconds": seconds}
        for images in (1_000, 10_000)
        for number in (1, 2, 3)
        for method, seconds in (
            ("torch update_bn", images / 1e4 if number > 1 else 9.0),
            ("adaptkit exact", 0.5),
        )
    ]
    return pd.DataFrame(rows)


def test_the_table_tells_flat_from_linear() -> None:
    table = cost.summary(costs())
    assert list(table.columns) == ["method", "1,000 images, s", "10,000 images, s", "x10 costs"]
    assert table.to_numpy().tolist() == [
        ["torch update_bn", 0.1, 1.0, 10.0],
        ["adaptkit exact", 0.5, 0.5, 1.0],
    ]


def test_the_figure_of_costs_has_a_line_a_method() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = cost.figure(costs()).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [line.get_label() for line in axes.lines] == ["torch update_bn", "adaptkit exact"]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.1, 1.0]
    assert axes.get_title()
    assert axes.get_ylabel() == "time, s (median)"
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines)


def runs(cores: int | str = 2) -> pd.DataFrame:
    seconds = {
        "processes": {1: (8.0, 9.0, 8.0), 2: (4.0, 4.0, 5.0), 4: (4.0, 4.0, 4.0)},
        "threads": {1: (8.0, 8.0, 8.0), 2: (5.0, 5.0, 5.0)},
    }
    rows = [
        {
            "case": "2 domains of 40 images, 64 px",
            "method": method,
            "workers": workers,
            "round": number,
            "samples": 80,
            "seconds": value,
            "largest difference": 1e-7 * number,
            "cores": cores,
        }
        for method, of_method in seconds.items()
        for workers, values in of_method.items()
        for number, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def test_efficiency_counts_no_more_workers_than_cores() -> None:
    table = domains.summary(runs("2"))
    columns = ["method", "workers", "seconds", "images per second", "speed, 1 worker = 1"]
    assert list(table.columns) == [*columns, "efficiency", "largest difference"]
    assert table.iloc[:, :6].to_numpy().tolist() == [
        ["processes", 1, 8.0, 10.0, 1.0, 1.0],
        ["processes", 2, 4.0, 20.0, 2.0, 1.0],
        ["processes", 4, 4.0, 20.0, 2.0, 1.0],
        ["threads", 1, 8.0, 10.0, 1.0, 1.0],
        ["threads", 2, 5.0, 16.0, 1.6, 0.8],
    ]
    assert table["largest difference"].tolist() == pytest.approx([3e-7] * 5)
    read_back = pd.read_csv(io.StringIO(runs().to_csv(index=False)))
    pd.testing.assert_frame_equal(domains.summary(read_back), table)


def test_the_figure_of_many_domains_marks_the_ideal_and_the_cores() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = domains.figure(runs()).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == ["ideal", "cores of this machine: 2", "processes", "threads"]
    assert np.asarray(lines["ideal"].get_ydata()).tolist() == [1, 2, 4]
    assert np.asarray(lines["processes"].get_ydata()).tolist() == [1, 2, 2]
    assert axes.get_xlabel() == "workers (processes or threads)"
    assert "64 px" in axes.get_title()


def test_a_difference_is_in_standard_deviations() -> None:
    expected = np.array([[[0.0, 1.0], [2.0, 4.0]]])  # means, then standard deviations
    assert domains.difference(expected, expected) == 0
    assert domains.difference(np.array([[[0.1, 1.0], [2.0, 4.0]]]), expected) == pytest.approx(0.05)
    assert domains.difference(np.array([[[0.0, 1.0], [2.0, 3.0]]]), expected) == pytest.approx(0.25)


def test_domains_are_unlike_and_always_the_same() -> None:
    made = [domains._domain(number, 2) for number in range(4)]
    assert all(x.shape == (2, 3, 64, 64) and x.dtype == torch.uint8 for x in made)
    assert all(torch.equal(x, domains._domain(n, 2)) for n, x in enumerate(made))
    assert torch.equal(made[1][..., ::2], made[1][..., 1::2])  # patches of 2 px
    assert not torch.equal(made[0][..., ::2], made[0][..., 1::2])


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-4, float("nan")])
def test_settings_that_find_other_statistics_are_refused(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(
        domains: int, images: int, *, processes: int, threads: int
    ) -> tuple[float, NDArray[np.float64]]:
        asked.append((processes, threads))
        shift = 0.0 if (processes, threads) == (1, 1) else apart
        return 1.0, np.array([[[shift, 0.0], [1.0, 1.0]]] * domains)

    monkeypatch.setattr(domains, "adapted", fake)
    if not apart <= domains.AGREE:
        with pytest.raises(RuntimeError, match="2 processes found statistics"):
            domains.run(quick=True)
        return
    frame, table = domains.run(quick=True)
    assert asked == [(1, 1), (2, 1), (4, 1), (1, 1), (1, 2), (1, 4)]
    assert table["largest difference"].max() == apart
    names = "case architecture method workers round samples seconds"
    assert [*names.split(), "largest difference"] == [*frame.columns[:8]]
    assert set(frame["samples"]) == {4 * 64}
    assert frame["threads"].tolist() == ["1", "1", "1", "1", "2", "4"]


@pytest.mark.slow
def test_processes_find_what_one_finds() -> None:
    seconds, one = domains.adapted(3, 8, processes=1, threads=1)
    assert seconds > 0
    assert one.shape == (3, 2, 4800)
    assert domains.difference(one[:1], one[1:2]) > 0.01  # else the order would not show
    _, two = domains.adapted(3, 8, processes=2, threads=1)
    assert domains.difference(two, one) <= domains.AGREE
