"""`adaptkit adapt --domains folder`: all domains as one, beside each by itself."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import digits
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from many import CLASSES, EACH, adapt, fails, results, rows, write_domain

from adaptkit import Statistics, estimate, image_folder, load_checkpoint
from adaptkit.pipeline.holdout import parts
from adaptkit.pipeline.one_domain import DomainAdapter
from adaptkit.pipeline.pooled import _drawn
from cli import main

NAMES = ("clean", "dark", "flat")
OFF = ("--guard", "off")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pooled")
    digits.save(folder / "source.pt", CLASSES)
    write_domain(folder / "domains" / "clean", 1.0, 0)
    write_domain(folder / "domains" / "dark", 0.2, 100)
    write_domain(folder / "domains" / "flat", 0.3, 200, labels=False)
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pooled(folder: str = "source-domains") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())["pooled"]
    return found


def pack() -> Path:
    return Path("source-domains", "pooled", "pooled.safetensors")


def records() -> dict[str, dict[str, Any]]:
    paths = Path("source-domains").glob("*.domain.json")
    return {path.name.removesuffix(".domain.json"): json.loads(path.read_text()) for path in paths}


def times() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("source-domains").rglob("*.*")}


# What it is.


@pytest.mark.parametrize("options", [(), (*OFF, "--prior", "8"), (*OFF, "--samples", "200")])
def test_its_pack_has_the_bytes_of_a_run_on_all_images(options: tuple[str, ...]) -> None:
    assert adapt(*options).exit_code == 0
    line = ["adapt", "--source", "source.pt", "--target", "domains", "--stats-only", *options]
    result = CliRunner().invoke(main, [*line, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert pack().read_bytes() == Path("source-statistics.safetensors").read_bytes()
    assert pooled()["samples"] == pooled()["images"] == 3 * EACH


def test_a_domain_may_lie_in_a_tar_file() -> None:
    assert adapt(*OFF, "--out", "folders").exit_code == 0
    images = sorted(Path("domains/dark").rglob("*.png"), key=Path.as_posix)
    with tarfile.open("dark.tar", "w") as archive:
        for number, image in enumerate(images):
            archive.add(image, f"{number:03}.png")
    shutil.rmtree("domains/dark")
    Path("domains/dark").mkdir()
    Path("dark.tar").rename("domains/dark/0.tar")
    assert adapt(*OFF).exit_code == 0
    for name in ("dark.safetensors", "pooled/pooled.safetensors"):
        found, expected = (Path(f, name).read_bytes() for f in ("source-domains", "folders"))
        assert found == expected


def test_what_is_held_out_in_a_domain_is_not_among_it() -> None:
    assert adapt(*OFF, "--holdout", "0.5", "--seed", "3").exit_code == 0
    source = load_checkpoint("source.pt")
    to_adapt = []
    for name in NAMES:
        loader = image_folder(f"domains/{name}", transform=source.transform)
        to_adapt += list(parts(loader, 0.5, 3)[0])
    expected = estimate(source.model, to_adapt)
    found = Statistics.load(pack())
    assert found.samples == expected.samples == 3 * EACH // 2
    for name, moments in expected.items():
        torch.testing.assert_close(found[name].mean, moments.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[name].variance(), moments.variance(), rtol=1e-5, atol=0)


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    most=st.none() | st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_samples_are_drawn_from_all_alike(counts: list[int], most: int | None, seed: int) -> None:
    places = {f"domain {k}": range(10 * k, 10 * k + n) for k, n in enumerate(counts)}
    every = [(name, place) for name, some in places.items() for place in some]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:most]
    found = _drawn(places, most, seed)
    assert all(found.values())
    drawn = [(name, place) for name, some in found.items() for place in some]
    assert drawn == [every[i] for i in sorted(order.tolist())]


def test_each_domain_is_scored_with_it() -> None:
    assert adapt(*OFF).exit_code == 0
    source = load_checkpoint("source.pt")
    model = Statistics.load(pack()).apply(source.model)
    accuracies, confidences = {}, {}
    for name in NAMES:
        loader = image_folder(f"domains/{name}", transform=source.transform, classes=source.classes)
        with torch.no_grad():
            batches = [b if isinstance(b, (tuple, list)) else (b, None) for b in loader]
            outputs = [(model(x).softmax(1), y) for x, y in batches]
        confidences[name] = torch.cat([p.max(1).values for p, _ in outputs]).mean().item()
        right = [p.argmax(1) == y for p, y in outputs if y is not None]
        accuracies[name] = torch.cat(right).double().mean().item() if right else None
    found = rows()
    for name in NAMES:
        assert found[name]["accuracy_pooled"] == accuracies[name]
        assert found[name]["confidence_pooled"] == pytest.approx(confidences[name])
    assert found["dark"]["accuracy_pooled"] != found["dark"]["accuracy_after"]
    row = pooled()
    assert row["accuracy_after"] == sum(accuracies[n] or 0 for n in ("clean", "dark")) / 2
    before = [found[name]["accuracy_before"] for name in ("clean", "dark")]
    assert row["accuracy_before"] == sum(before) / 2
    assert row["confidence_after"] == pytest.approx(sum(confidences.values()) / 3)


def test_where_the_guard_keeps_the_source_it_is_scored_as_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree("domains/clean", "more/clean")
    shutil.copytree("domains/clean", "more/clean too")

    def scored(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(DomainAdapter, "_scored", scored)
    result = adapt(target="more")
    assert result.exit_code == 0, result.output
    assert pooled()["status"] == "kept"
    for row in rows().values():
        assert row["accuracy_pooled"] == row["accuracy_before"]
    said = " ".join(result.stdout.split())
    assert "as one (pooled, where the guard kept the source's statistics)" in said


# Where it is told apart.


def test_it_is_no_domain() -> None:
    result = adapt(*OFF)
    assert result.exit_code == 0, result.output
    assert "Adapted to 3 of 3 domains, 120 images" in result.stdout
    assert "all as one (pooled) " in result.stdout
    assert "source-domains/*.safetensors, 3 in all" in result.stdout
    summary = json.loads(Path("source-domains/summary.json").read_text())
    assert [row["domain"] for row in summary["rows"]] == list(NAMES)
    assert summary["totals"]["domains"] == summary["totals"]["adapted"] == 3
    assert summary["totals"]["images"] == 3 * EACH
    frame = pd.read_csv("source-domains/summary.csv")
    assert list(frame["kind"]) == ["domain"] * 3 + ["pooled"]
    assert frame["pack"].iloc[-1] == "pooled/pooled.safetensors"
    assert Path("source-domains", frame["pack"].iloc[-1]).exists()
    page = Path("source-domains/summary.html").read_text(encoding="utf-8")
    assert page.index("All as one (pooled)") < page.index("All domains")
    line = ["apply", "--source", "source.pt", "--stats", str(pack()), "--out", "once.pt"]
    assert CliRunner().invoke(main, line).exit_code == 0


def test_a_domain_may_have_its_name() -> None:
    shutil.copytree("domains/dark", "domains/pooled")
    assert adapt(*OFF).exit_code == 0
    dark = Path("source-domains/dark.safetensors").read_bytes()
    assert Path("source-domains/pooled.safetensors").read_bytes() == dark != pack().read_bytes()
    assert rows()["pooled"]["kind"] == "domain"
    assert pooled()["kind"] == "pooled"
    assert "4 were there already" in adapt(*OFF).stdout


def test_of_one_domain_there_is_none() -> None:
    shutil.copytree("domains/dark", "one/dark")
    assert adapt(*OFF, target="one").exit_code == 0
    assert pooled() is None
    assert not Path("source-domains/pooled").exists()
    assert list(pd.read_csv("source-domains/summary.csv")["kind"]) == ["domain"]


# What is made anew.


def test_nothing_is_made_again_where_nothing_changed() -> None:
    assert adapt(*OFF).exit_code == 0
    summaries = {*Path("source-domains").glob("summary.*")}
    before = {path: when for path, when in times().items() if path not in summaries}
    assert adapt(*OFF).exit_code == 0
    assert before.items() <= times().items()


def test_a_new_domain_changes_it_and_all_are_scored_with_the_new_one() -> None:
    assert adapt(*OFF).exit_code == 0
    old = pack().read_bytes()
    write_domain(Path("domains/new"), 0.5, 300)
    shutil.copytree("domains", "kept")
    own = {name: Path(f"source-domains/{name}.safetensors").stat().st_mtime_ns for name in NAMES}
    assert "3 were there already" in adapt(*OFF).stdout
    assert pack().read_bytes() != old
    sha256 = hashlib.sha256(pack().read_bytes()).hexdigest()
    assert {record["pooled_sha256"] for record in records().values()} == {sha256}
    for name, when in own.items():
        assert Path(f"source-domains/{name}.safetensors").stat().st_mtime_ns == when
    assert adapt(*OFF, "--out", "whole").exit_code == 0
    assert results() == results("whole")


def test_files_that_are_only_touched_change_none_of_the_figures() -> None:
    assert adapt(*OFF).exit_code == 0
    old, before = pack().read_bytes(), records()
    os.utime(next(Path("domains/flat").iterdir()), ns=(0, 0))
    touched = times()
    assert "2 were there already" in adapt(*OFF).stdout
    assert pack().read_bytes() == old
    assert times()[pack()] > touched[pack()]
    for name in ("clean", "dark"):
        path = Path(f"source-domains/{name}.domain.json")
        assert times()[path] == touched[path]
        assert records()[name] == before[name]


def test_figures_of_domains_that_are_gone_do_not_stay() -> None:
    assert adapt(*OFF).exit_code == 0
    assert rows()["dark"]["accuracy_pooled"] is not None
    for name in ("clean", "flat"):
        shutil.rmtree(f"domains/{name}")
    assert "1 were there already" in adapt(*OFF).stdout
    assert rows()["dark"]["accuracy_pooled"] is None
    assert rows()["dark"]["accuracy_after"] is not None
    assert records()["dark"]["pooled_sha256"] is None


# Failures.


def test_it_says_which_domains_it_leaves_out() -> None:
    Path("domains/empty").mkdir()
    shutil.copytree("domains/dark", "domains/half")
    for image in list(Path("domains/half").rglob("*.png"))[:10]:
        image.write_bytes(b"")
    result = adapt(*OFF)
    assert result.exit_code == 1
    row = pooled()
    failed = "Samples of half, which failed, may be among its own."
    assert row["note"] == f"Without empty, which cannot be opened. {failed}"
    assert (row["images"], row["skipped"], row["samples"]) == (4 * EACH, 10, 4 * EACH - 10)
    assert f"Note on the pooled result: {row['note']}" in " ".join(result.stdout.split())
    assert "cannot be opened" in Path("source-domains/summary.html").read_text(encoding="utf-8")
    sha256 = records()["clean"]["pooled_sha256"]
    assert adapt(*OFF).exit_code == 1  # which tries the two again
    assert records()["clean"]["pooled_sha256"] == sha256


def test_that_it_fails_stops_no_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(DomainAdapter, "adapt_once", out_of_memory)
        result = adapt(*OFF)
    assert result.exit_code == 1
    assert result.stderr == "Error: the pooled result failed: RuntimeError out of memory\n"
    assert "The pooled result failed: RuntimeError out of memory" in result.stdout
    assert {row["status"] for row in rows().values()} == {"adapted"}
    assert {row["accuracy_pooled"] for row in rows().values()} == {None}
    assert pooled()["status"] == "failed"
    again = adapt(*OFF)
    assert again.exit_code == 0, again.output
    assert "3 were there already" in again.stdout
    assert rows()["dark"]["accuracy_pooled"] is not None
    assert adapt(*OFF, "--out", "whole").exit_code == 0
    assert results() == results("whole")


def test_files_of_others_are_not_replaced() -> None:
    Path("out").mkdir()
    Path("out/pooled").touch()
    fails("cannot use out/pooled: Not a directory", "--out", "out")
    Path("out/pooled").unlink()
    Path("out/pooled").mkdir()
    Path("out/pooled/pooled.safetensors").touch()
    fails("out/pooled/pooled.safetensors exists already and is no result", "--out", "out")
    assert adapt(*OFF, "--out", "out", "--force").exit_code == 0
