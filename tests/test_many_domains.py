"""`adaptkit adapt --domains folder`: each domain as alone, stopped and gone on with, failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import digits
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from jobs import job, values
from many import CLASSES, EACH, adapt, fails, results, rows, write_domain

from adaptkit import ImageLoader, Statistics, image_folder, load_checkpoint, save_checkpoint
from adaptkit.data import listing
from adaptkit.data.cache import PixelCache
from adaptkit.data.decode import decode
from adaptkit.free import free_memory
from adaptkit.paired import proportion_change
from adaptkit.pipeline import DomainsRun, adapt_domain_folders, one_domain
from adaptkit.pipeline.domain_results import as_json
from adaptkit.pipeline.one_domain import DomainAdapter
from adaptkit.report.many import ADAPTED, FAILED, KEPT, POOLED, DomainRow, ranked, totals
from cli import main
from cli.domains import print_domains

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.pt and domains/: as in the source, dark, and without labels."""
    folder = tmp_path_factory.mktemp("domains")
    digits.save(folder / "source.pt", CLASSES)
    write_domain(folder / "domains" / "clean", 1.0, 0)
    write_domain(folder / "domains" / "dark", 0.3, 100)
    write_domain(folder / "domains" / "flat", 0.3, 200, labels=False)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Each domain is as it is alone.


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--guard", "off", "--layers", "features.1", "--prior", "8"],
        ["--guard", "report", "--holdout", "0.5", "--samples", "12", "--seed", "3"],
        ["--source-data", "domains/clean", "--class-shares", "uniform"],
    ],
)
def test_a_pack_has_the_bytes_of_a_run_on_that_folder_alone(here: Path, options: list[str]) -> None:
    result = adapt(*options)
    assert result.exit_code == 0, result.output
    for domain in ("clean", "dark", "flat"):
        line = ["adapt", "--source", "source.pt", "--target", f"domains/{domain}", "--stats-only"]
        alone = CliRunner().invoke(main, [*line, "--device", "cpu", "--force", *options])
        assert alone.exit_code == 0, alone.output
        pack = Path(f"source-domains/{domain}.safetensors").read_bytes()
        assert pack == Path("source-statistics.safetensors").read_bytes()
        report = json.loads(Path("source-statistics.json").read_text())
        figures = {row["metric"]: row for row in report["rows"] if row["scope"] == "all"}
        row = rows()[domain]
        assert row["images"] == report["samples"]["images"] == EACH
        assert row["samples"] == report["samples"]["estimated"]
        confidence = figures["confidence_mean"]
        assert row["confidence_before"] == pytest.approx(confidence["before"])
        assert row["confidence_after"] == pytest.approx(confidence["after"])
        accuracy = figures.get("accuracy", {"before": None, "after": None, "p_value": None})
        for name in ("before", "after"):
            assert row[f"accuracy_{name}"] == accuracy[name]
        assert row["p_value"] == accuracy["p_value"]
        guard = report["guard"]
        assert row["choice"] == (guard and guard["choice"])
        assert row["severity"] == (guard and guard["figures"]["severity"])


def test_the_figures_are_those_of_the_packs(here: Path) -> None:
    assert adapt().exit_code == 0
    found = rows()
    assert [found[name]["status"] for name in ("clean", "dark", "flat")] == [KEPT, ADAPTED, ADAPTED]
    for name in ("clean", "dark"):
        source = load_checkpoint("source.pt")
        pack = Statistics.load(f"source-domains/{name}.safetensors")
        assert pack.base == source.fingerprint()
        for when, model in (
            ("before", source.model),
            ("after", pack.apply(load_checkpoint("source.pt").model)),
        ):
            loader = image_folder(
                f"domains/{name}", transform=source.transform, classes=source.classes
            )
            with torch.no_grad():
                right = torch.cat([model(x).argmax(1) == y for x, y in loader])
            assert found[name][f"accuracy_{when}"] == pytest.approx(right.double().mean().item())
    assert found["dark"]["accuracy_after"] > found["dark"]["accuracy_before"] + 0.3
    assert found["flat"]["accuracy_before"] is None
    line = ["apply", "--source", "source.pt", "--stats", "source-domains/dark.safetensors"]
    assert CliRunner().invoke(main, [*line, "--out", "dark.pt"]).exit_code == 0


def test_the_summary(here: Path) -> None:
    result = adapt("--seed", "5")
    assert result.exit_code == 0, result.output
    summary = json.loads(Path("source-domains/summary.json").read_text())
    assert summary["seed"] == summary["arguments"]["seed"] == 5
    assert summary["checkpoint"]["sha256"] == load_checkpoint("source.pt").sha256
    assert summary["command"] == (
        "adaptkit adapt --source source.pt --target domains --device cpu --seed 5 --domains folder"
    )
    assert {"adaptkit", "torch", "python"} <= summary["versions"].keys()
    frame = pd.read_csv("source-domains/summary.csv")
    frame = frame[frame["kind"] == "domain"]
    assert list(frame["domain"]) == ["clean", "dark", "flat"]
    assert list(frame["pack"]) == ["clean.safetensors", "dark.safetensors", "flat.safetensors"]
    labelled = frame[frame["accuracy_before"].notna()]
    assert len(labelled) == summary["totals"]["labelled"] == 2
    for name in ("accuracy_before", "accuracy_after", "confidence_after"):
        assert summary["totals"][name] == pytest.approx(frame[name].mean())
    assert summary["totals"]["images"] == 3 * EACH
    page = Path("source-domains/summary.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("clean", "dark", "flat", "--domains folder"))
    assert len(page) < 100_000
    assert "<script src" not in page


def test_json_stands_alone_on_stdout_and_quiet_prints_nothing(here: Path) -> None:
    result = adapt("--json")
    assert result.stdout == Path("source-domains/summary.json").read_text()
    assert not result.stderr
    again = adapt("--quiet")
    assert (again.exit_code, again.output) == (0, "")


# Stopped, and gone on with.


def stopped_after(count: int, **options: Any) -> None:
    def progress(stage: str, done: int, _: int | None) -> None:
        if stage == "domains" and done == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt_domain_folders("source.pt", "domains", device="cpu", progress=progress, **options)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(here: Path) -> None:
    assert adapt("--out", "whole").exit_code == 0
    stopped_after(2)
    assert sorted(p.name for p in Path("source-domains").rglob("*.*")) == [
        *("clean.domain.json", "clean.safetensors", "dark.domain.json", "dark.safetensors"),
        *("pooled.domain.json", "pooled.safetensors"),
    ]
    times = {p: p.stat().st_mtime_ns for p in Path("source-domains").rglob("*.*")}
    result = adapt()
    assert "2 were there already" in result.stdout
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert results() == results("whole")


@pytest.mark.parametrize("left", ["no pack", "half a pack", "an old pack", "no record"])
def test_what_a_kill_can_leave_is_made_again(here: Path, left: str) -> None:
    assert adapt("--out", "whole").exit_code == 0
    stopped_after(2)
    pack = Path("source-domains/dark.safetensors")
    if left == "half a pack":
        pack.write_bytes(pack.read_bytes()[:1000])
    elif left == "an old pack":
        shutil.copy("source-domains/clean.safetensors", pack)
    else:
        pack.unlink()
    if left == "no record":
        Path("source-domains/dark.domain.json").unlink()
    Path("source-domains/.dark.safetensors-abc.part").write_bytes(b"half")
    result = adapt()
    assert result.exit_code == 0, result.output
    assert "1 were there already" in result.stdout
    assert results() == results("whole")


@pytest.mark.slow
def test_killed_at_any_moment(here: Path) -> None:
    for number in range(12):
        shutil.copytree("domains/dark", f"domains/dark {number}")
    assert adapt("--out", "whole").exit_code == 0
    line = ["adapt", "--source", "source.pt", "--target", "domains", "--domains", "folder"]
    program = f"from cli import main; main({[*line, '--device', 'cpu']!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for more in (1, 4, 7):
        run = subprocess.Popen([sys.executable, "-c", program], env=environment)
        end = time.monotonic() + 60
        while len(list(Path().glob("source-domains/*.safetensors"))) < more:
            assert time.monotonic() < end
            time.sleep(0.003)
        run.send_signal(signal.SIGKILL)
        assert run.wait(timeout=30) == -signal.SIGKILL
    assert not Path("source-domains/summary.json").exists()
    assert adapt().exit_code == 0
    assert results() == results("whole")


def adapt_my_part(folder: str) -> tuple[list[str], list[str], int]:
    """Adapt in one process of a job; return which failed, which it did, how many were there."""
    os.chdir(folder)
    mine: list[str] = []
    shares: list[int] = []
    own = DomainAdapter.adapt

    def noted(self: DomainAdapter, name: str, loader: ImageLoader) -> tuple[DomainRow, Statistics]:
        mine.append(name)
        shares.append(self.options["memory"])
        time.sleep(0.2)  # so that there is work for both
        return own(self, name, loader)

    DomainAdapter.adapt = noted  # type: ignore[method-assign]
    run = adapt_domain_folders("source.pt", "domains", device="cpu")
    assert max(shares) < 0.3 * free_memory()  # of two at once, each a half of half
    return run.failed, mine, run.found


def test_processes_that_share_the_domains_make_the_same(here: Path) -> None:
    assert adapt("--out", "whole").exit_code == 0
    every = values(job(2, adapt_my_part, str(here)))
    assert sorted(name for _, mine, __ in every for name in mine) == ["clean", "dark", "flat"]
    assert all(mine for _, mine, __ in every)
    assert [(failed, found) for failed, _, found in every] == [([], 0), ([], 0)]
    assert results() == results("whole")


# Only what has changed is made anew.


def test_new_domains_and_changed_ones_alone_are_made(here: Path) -> None:
    assert adapt().exit_code == 0
    before = {name: row["seconds"] for name, row in rows().items()}
    write_domain(here / "domains" / "new", 0.5, 300)
    assert "3 were there already" in adapt().stdout
    assert rows()["new"]["images"] == EACH
    digits.write(here / "domains" / "dark" / "3" / "more.png", torch.zeros(1, 8, 8))
    assert "3 were there already" in adapt().stdout
    assert rows()["dark"]["images"] == EACH + 1
    image = next(Path("domains/flat").iterdir())
    os.utime(image, ns=(0, 0))  # replaced by one of the same size
    assert "3 were there already" in adapt().stdout
    after = {name: row["seconds"] for name, row in rows().items()}
    assert after["clean"] == before["clean"]
    shutil.rmtree("domains/new")
    adapt()
    assert "new" not in rows()
    assert "already" not in adapt("--force").stdout


def test_what_does_not_matter_may_differ(here: Path) -> None:
    assert adapt().exit_code == 0
    for options in (["--batch-size", "7"], ["--skip-bad"], ["--memory", "1GiB"]):
        assert "3 were there already" in adapt(*options).stdout


def test_results_of_another_run_are_refused(here: Path) -> None:
    assert adapt().exit_code == 0
    fails("(seed 0, now 1): use --force", "--seed", "1")
    fails("(prior 0.0, now 8.0; also guard, layers): use", "--guard", "off", "--prior", "8",
          "--layers", "features.1")  # fmt: skip
    shutil.copytree("domains", "others")
    fails("another run (target ", target="others")
    source = load_checkpoint("source.pt")
    with torch.no_grad():
        next(source.model.parameters()).mul_(1.01)
    save_checkpoint("other.pt", source.model, like=source)
    fails("another run (checkpoint ", "--out", "source-domains", source="other.pt")
    fails("another run (transform ", "--mean", "0.4")
    shutil.copytree("source-domains", "stopped")
    Path("stopped/summary.json").unlink()  # as before the end of a run
    for end in ("csv", "html"):
        Path(f"stopped/summary.{end}").unlink()
    fails("stopped holds results of another run (seed", "--seed", "1", "--out", "stopped")
    result = adapt("--seed", "1", "--force")
    assert result.exit_code == 0, result.output
    assert "already" not in result.stdout
    fails("(seed 1, now 0)")


@pytest.mark.parametrize(
    "name", ["summary.json", "summary.csv", "dark.safetensors", "dark.domain.json"]
)
@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"format": "adaptkit-domain/1"}'])
def test_files_of_others_are_not_replaced(here: Path, name: str, content: str) -> None:
    Path("out").mkdir()
    Path("out", name).write_text(content)
    fails(f"out/{name} exists already and is no result of such a run", "--out", "out")
    assert adapt("--out", "out", "--force").exit_code == 0


# Failures.


def test_a_domain_that_fails_does_not_stop_the_others(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Path("domains/broken").mkdir(exist_ok=True)
        Path(f"domains/broken/{number}.png").write_bytes(b"no image")
    Path("domains/empty").mkdir()
    shutil.copytree("domains/dark", "domains/half")
    for image in list(Path("domains/half").rglob("*.png"))[:10]:
        image.write_bytes(b"")
    shutil.copytree("domains/dark", "domains/named")
    Path("domains/named/0").rename("domains/named/ten")
    shutil.copytree("domains/dark", "domains/memory")
    right = DomainAdapter.adapt

    def out_of_memory(adapter: DomainAdapter, name: str, loader: Any) -> Any:
        if name == "memory":
            raise RuntimeError("out of\nmemory")
        return right(adapter, name, loader)

    monkeypatch.setattr(DomainAdapter, "adapt", out_of_memory)
    result = adapt()
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: 5 of 8 domains failed: broken, empty, half, ...; see source-domains/summary.csv\n"
    )
    found = rows()
    reasons = {
        "broken": "none of the 3 images in domains/broken can be read, the first being 0.png",
        "empty": "domains/empty holds no images",
        "half": "10 of 40 images cannot be read",
        "named": "no class of the checkpoint is named ten",
        "memory": "RuntimeError out of memory",
    }
    shown = " ".join(result.stdout.split())
    for name, reason in reasons.items():
        assert found[name]["status"] == FAILED
        assert reason in found[name]["error"]
        assert f"{name}: {found[name]['error'][:60]}" in shown
        assert found[name]["pack"] == ""
        assert not Path(f"source-domains/{name}.safetensors").exists()
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert [found[name]["status"] for name in ("clean", "dark", "flat")] == [KEPT, ADAPTED, ADAPTED]

    monkeypatch.undo()
    monkeypatch.chdir(here)
    for name in ("broken", "empty", "named"):
        shutil.rmtree(f"domains/{name}")
    again = adapt("--skip-bad")
    assert again.exit_code == 0, again.output
    assert "3 were there already" in again.stdout
    assert {row["status"] for row in rows().values()} == {KEPT, ADAPTED}
    assert rows()["half"]["skipped"] == 10
    assert "Skipped 10 images" in again.stdout


def test_an_image_may_vanish_between_any_two_passes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that for all as one: before, the estimate, after, and with the pooled statistics."""
    shutil.rmtree("domains/flat")
    gone = sorted(Path("domains/clean").rglob("*.png"))[5]
    content = gone.read_bytes()
    reads = 0

    def vanishing(path: Path, *more: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == when:
            gone.unlink()
        return decode(path, *more)

    monkeypatch.setattr(listing, "decode", vanishing)
    monkeypatch.setattr(PixelCache, "put", lambda *_: None)  # as where there is no room for them
    compared: list[tuple[int, int]] = []

    def counted(first: Any, second: Any) -> Any:
        compared.append((len(first), len(second)))
        return proportion_change(first, second)

    monkeypatch.setattr(one_domain, "proportion_change", counted)
    for number in range(4):
        gone.write_bytes(content)
        reads, when = 0, 2 * EACH + number * EACH + 1
        result = adapt("--guard", "off", "--out", f"out-{number}")
        assert result.exit_code == 0, result.output
        clean = rows(f"out-{number}")["clean"]
        assert (clean["images"], clean["skipped"]) == (EACH, 1)
        assert (
            clean["note"] == f"Skipped: {gone.relative_to('domains/clean')} (not there any more)."
        )
        assert compared == [(EACH - 1, EACH - 1), (EACH, EACH)]
        compared.clear()


def test_packs_of_domains_that_are_gone_are_named_and_stay(here: Path) -> None:
    assert "any more" not in adapt("--guard", "off").stdout
    packs = {path: path.read_bytes() for path in Path("source-domains").glob("*.safetensors")}
    shutil.rmtree("domains/dark")
    result = adapt("--guard", "off")
    assert result.exit_code == 0, result.output
    said = "1 pack stays of a domain that is not in the target any more: dark."
    assert said in " ".join(result.stdout.split())
    assert said in json.loads(Path("source-domains/summary.json").read_text())["notes"]
    assert {path: path.read_bytes() for path in packs} == packs
    assert {*rows()} == {"clean", "flat"}


def test_json_of_failures_has_the_same_exit(here: Path) -> None:
    Path("domains/empty").mkdir()
    result = adapt("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["totals"]["failed"] == 1
    assert result.stderr.startswith("Error: 1 of 4 domains failed: empty;")


def test_a_domain_that_fails_later_loses_its_pack(here: Path) -> None:
    assert adapt().exit_code == 0
    shutil.rmtree("domains/dark")
    Path("domains/dark").mkdir()
    assert adapt().exit_code == 1
    assert not Path("source-domains/dark.safetensors").exists()
    assert Path("source-domains/flat.safetensors").exists()


# What it refuses, before anything is written.


@pytest.mark.parametrize(
    "options",
    [
        ["--report", "x.csv"],
        ["--method", "adain"],
        ["--method", "adabn"],
        ["--stats-only"],
        ["--certify"],
        ["--input-fit"],
    ],
)
def test_options_that_make_no_sense(here: Path, options: list[str]) -> None:
    fails(f"one summary of all: leave out {options[0]}", *options)


def test_arguments_that_concern_all_domains(here: Path) -> None:
    fails("there is no folder nowhere", target="nowhere")
    fails("source.pt holds the arrays classes: expected the samples", target="source.pt")
    fails("domains/flat holds no folders: expected one for each domain", target="domains/flat")
    fails("missing.pt", source="missing.pt")
    Path("broken.pt").write_bytes(b"broken")
    fails("broken.pt", source="broken.pt")
    fails("no norm layer is named 'layer9'", "--layers", "layer9")
    fails("--mode stream: leave one out", "--mode", "stream", "--class-shares", "uniform")
    fails("need labelled source images", "--class-shares", "uniform")
    fails("none is compared", "--guard", "off", "--source-data", "domains/clean")
    fails("there is no folder nowhere", "--source-data", "nowhere")
    fails("no device 'warp'", "--device", "warp")


def test_folders_that_cannot_take_results(here: Path) -> None:
    fails("domains/out lies in domains and would be taken for a domain", "--out", "domains/out")
    fails("lies in domains and would be taken", "--out", "domains")
    fails("source.pt is a file", "--out", "source.pt")
    fails("there is no folder missing", "--out", "missing/out")
    fails("source.pt is an input, and lies in .", "--out", ".")
    fails("cannot make /proc/out", "--out", "/proc/out")


# Names.


def test_odd_names(here: Path) -> None:
    shutil.rmtree("domains/clean")
    names = ["summary", "two words", "día 1", "=1+1", "a" * 200, "x.domain"]
    for name in names:
        shutil.copytree("domains/flat", f"domains/{name}")
    Path("domains/.hidden").mkdir()
    Path("domains/notes.txt").touch()
    Path("domains/link.png").symlink_to("nowhere")
    result = adapt()
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "Note: 2 files beside the domains' folders passed over: link.png, notes.txt." in said
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert rows().keys() == {*names, "dark", "flat"}
    flat = Path("source-domains/flat.safetensors").read_bytes()
    assert all(Path(f"source-domains/{name}.safetensors").read_bytes() == flat for name in names)
    text = Path("source-domains/summary.csv").read_text(encoding="utf-8")
    assert not re.search(r"^\"?=", text, re.MULTILINE)
    again = adapt()
    assert "8 were there already" in again.stdout
    Path("domains", "b" * 250).mkdir()
    fails("File name too long")


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree("domains/flat", f"domains/{name}")
    result = adapt()
    assert result.exit_code == 0, result.output
    assert name in rows()
    assert "caf\\udce9" in Path("source-domains/summary.csv").read_text(encoding="utf-8")
    assert "4 were there already" in adapt().stdout
    assert adapt("--json").exit_code == 0


# The table.


def run_of(found: Sequence[DomainRow], pooled: DomainRow | None = None) -> DomainsRun:
    details = {"totals": totals(found), "of": "images", "prepared": "8 x 8", "notes": []}
    return DomainsRun(tuple(found), pooled, details, Path("out"), 0, (), "All is said.")


def made_up(number: int, change: float | None) -> DomainRow:
    after = None if change is None else 0.5 + change
    return DomainRow(
        f"a rather long name of a domain {number}",
        ADAPTED,
        images=200_000,
        accuracy_before=None if change is None else 0.5,
        accuracy_pooled=None if change is None else 0.5,
        accuracy_after=after,
        confidence_before=0.5,
        confidence_after=0.5 + number / 4000,
        choice="corrected",
    )


def test_the_table_shows_the_ends_and_every_failure(capsys: pytest.CaptureFixture[str]) -> None:
    found = [made_up(n, (n - 500) / 1000) for n in range(1000)]
    found += [DomainRow(f"lost {n}", FAILED, error="x" * 200) for n in range(20)]
    as_one = replace(made_up(0, 0.25), kind=POOLED, images=200_000_000)
    print_domains(run_of(found, as_one))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 120
    changes = [float(found[1]) for found in re.finditer(r"([-+]\d+\.\d)  corrected", text)]
    ends = [-50.0, -49.9, -49.8, -49.7, -49.6, 49.5, 49.6, 49.7, 49.8, 49.9]
    assert changes == [*ends, 25.0]
    assert all(f"lost {n}: " in text for n in range(20))


def test_without_labels_the_table_is_of_confidence(capsys: pytest.CaptureFixture[str]) -> None:
    found = [made_up(n, None) for n in range(3)]
    print_domains(run_of(found))
    assert "mean confidence, %" in capsys.readouterr().out
    assert [row.domain[-1] for row in ranked(found)] == ["0", "1", "2"]
    print_domains(run_of([DomainRow("lost", FAILED, error="why")]))
    text = capsys.readouterr().out
    assert "lost: why" in text


def test_json_can_hold_any_name() -> None:
    assert json.loads(as_json({"\udcff ü": 1})) == {"\udcff ü": 1}
