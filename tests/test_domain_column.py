"""`adaptkit adapt --domains folder` on a file that says of each sample which domain it is of."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from jobs import job, values
from many import CLASSES, EACH, adapt, fails, results, rows, write_domain
from PIL import Image
from torch import nn

from adaptkit import Statistics
from adaptkit.pipeline import adapt_domain_folders
from cli import main

NAMES = ("clean", "dark", "flat")
OFF = ("--guard", "off")
CODE = """
from torch import nn

def features(num_classes=2):
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, num_classes))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("column")
    digits.save(folder / "source.pt", CLASSES)
    for name, contrast, start in (("clean", 1.0, 0), ("dark", 0.2, 100), ("flat", 0.3, 200)):
        write_domain(folder / "domains" / name, contrast, start)
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with source.pt, domains/, and m.csv, which lists all that is in it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    manifest().to_csv("m.csv", index=False)
    return tmp_path


def manifest() -> pd.DataFrame:
    paths = sorted(Path("domains").rglob("*.png"), key=Path.as_posix)
    parts = [path.parts for path in paths]
    columns = {"domain": [p[1] for p in parts], "label": [p[2] for p in parts]}
    return pd.DataFrame({"path": [path.as_posix() for path in paths], **columns})


def write_array(path: str, **more: Any) -> pd.DataFrame:
    """Write all images as one array of pixels, with labels and domains; return the manifest."""
    table = manifest()
    pixels = np.stack([np.asarray(Image.open(name)) for name in table["path"]])
    columns: dict[str, Any] = {
        "y": table["label"].to_numpy(int),
        "domain": table["domain"].to_numpy(str),
    }
    np.savez(path, x=pixels, **columns, **more)
    return table


def packs(folder: str = "source-domains") -> dict[str, bytes]:
    paths = Path(folder).rglob("*.safetensors")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_manifest_of_all_images_is_the_folder() -> None:
    assert adapt("--out", "folder").exit_code == 0
    result = adapt(target="m.csv")
    assert result.exit_code == 0, result.output
    assert packs() == packs("folder")
    assert {*packs()} == {*(f"{name}.safetensors" for name in NAMES), "pooled/pooled.safetensors"}
    one, other = (pd.read_csv(f"{name}/summary.csv") for name in ("source-domains", "folder"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


def test_rows_may_stand_in_any_order() -> None:
    assert adapt(*OFF, target="m.csv").exit_code == 0
    manifest().sample(frac=1, random_state=0).to_csv("n.csv", index=False)
    assert adapt(*OFF, "--out", "other", target="n.csv").exit_code == 0
    for name in packs():
        one, other = (Statistics.load(f"{f}/{name}") for f in ("source-domains", "other"))
        assert one.samples == other.samples
        for layer, moments in one.items():
            torch.testing.assert_close(moments.mean, other[layer].mean, rtol=1e-5, atol=1e-6)
    for name, row in rows().items():
        assert row["accuracy_after"] == rows("other")[name]["accuracy_after"]


def test_an_array_with_weights_is_each_domain_as_alone() -> None:
    weight = np.random.default_rng(0).uniform(0.1, 5, 3 * EACH)
    table = write_array("all.npz", weight=weight)
    result = adapt(*OFF, target="all.npz")
    assert result.exit_code == 0, result.output
    assert adapt(*OFF, "--out", "unweighted").exit_code == 0
    arrays = np.load("all.npz")
    for name in NAMES:
        own = (table["domain"] == name).to_numpy()
        parts = {key: arrays[key][own] for key in ("x", "y", "weight")}
        np.savez("one.npz", **parts)
        line = ["adapt", "--source", "source.pt", "--target", "one.npz", "--stats-only", *OFF]
        alone = CliRunner().invoke(main, [*line, "--device", "cpu", "--force"])
        assert alone.exit_code == 0, alone.output
        assert packs()[f"{name}.safetensors"] == Path("source-statistics.safetensors").read_bytes()
        assert packs()[f"{name}.safetensors"] != packs("unweighted")[f"{name}.safetensors"]
        assert rows()[name]["images"] == EACH


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_each_domain_has_the_labels_that_it_has(kind: str) -> None:
    table = manifest()
    own = {name: (table["domain"] == name).to_numpy() for name in NAMES}
    table.to_csv("all.csv", index=False)
    write_array("all.npz")
    assert adapt(*OFF, "--out", "all", target=f"all.{kind}").exit_code == 0
    all_labelled = rows("all")
    first, second, third = NAMES
    label = table["label"].where(~own[second], "")
    label[int(own[third].argmax())] = ""
    if kind == "csv":
        table.assign(label=label).to_csv("some.csv", index=False)
    else:
        np.savez("some.npz", **{**np.load("all.npz"), "y": label.to_numpy(str)})
    result = adapt(*OFF, target=f"some.{kind}")
    assert result.exit_code == 0, result.output
    found = rows()
    for figure in ("accuracy_before", "accuracy_pooled", "accuracy_after", "p_value"):
        assert found[first][figure] == all_labelled[first][figure] is not None
        assert found[second][figure] is None
        assert found[third][figure] is None
    assert (found[first]["note"], found[second]["note"]) == ("", "")
    said = f"1 of {EACH} samples in some.{kind} have no label, so all count as unlabelled."
    assert found[third]["note"] == said


def test_samples_of_no_weight_are_drawn_for_no_pack() -> None:
    weight = np.where(np.arange(3 * EACH) % 4 == 0, 1.0, 0.0)
    write_array("all.npz", weight=weight)
    result = adapt(*OFF, "--samples", "5", target="all.npz")
    assert result.exit_code == 0, result.output
    for name, row in rows().items():
        assert (row["images"], row["samples"]) == (EACH, 5), name
    pooled = json.loads(Path("source-domains/summary.json").read_text())["pooled"]
    assert pooled["samples"] == 5


@pytest.mark.parametrize("target", ["all.tar", "shards/{0..2}.tar", "shards"])
def test_tar_files_that_say_their_images_domains(target: str) -> None:
    assert adapt(*OFF, "--out", "folder").exit_code == 0
    Path("shards").mkdir()
    table = manifest()
    each = len(table) if target == "all.tar" else EACH + 7
    for number, first in enumerate(range(0, len(table), each)):
        name = target if target == "all.tar" else f"shards/{number}.tar"
        with tarfile.open(name, "w") as archive:
            for i, row in table[first : first + each].iterrows():
                archive.add(row["path"], f"{i:03}.png")
                Path("said.json").write_text(json.dumps(dict(row[["label", "domain"]])))
                archive.add("said.json", f"{i:03}.json")
    result = adapt(*OFF, target=target)
    assert result.exit_code == 0, result.output
    assert packs() == packs("folder")
    assert rows()["dark"]["accuracy_pooled"] == rows("folder")["dark"]["accuracy_pooled"]


def write_table(frame: pd.DataFrame | None = None) -> pd.DataFrame:
    if frame is None:
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(3, 2, (60, 3)), columns=["a", "b", "c"])
        frame["domain"] = np.where(np.arange(60) % 3, "north", "south")
    frame.to_csv("t.csv", index=False)
    return frame


def of_features(*args: str) -> Any:
    Path("nets.py").write_text(CODE)
    found: dict[str, Any] = {}
    exec(CODE, found)
    torch.manual_seed(0)
    net: nn.Module = found["features"]()
    torch.save(net.state_dict(), "f.pt")
    return adapt(*OFF, "--arch", "nets.py:features", *args, target="t.csv", source="f.pt")


def test_a_table_of_features() -> None:
    frame = write_table()
    result = of_features()
    assert result.exit_code == 0, result.output
    found = rows("f-domains")
    assert {name: row["images"] for name, row in found.items()} == {"north": 40, "south": 20}
    for name, part in frame.groupby("domain"):
        values = part[["a", "b", "c"]].to_numpy(np.float32)
        (moments,) = Statistics.load(f"f-domains/{name}.safetensors").values()
        np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(moments.variance(), values.var(0, ddof=1), rtol=1e-5)
    (moments,) = Statistics.load("f-domains/pooled/pooled.safetensors").values()
    np.testing.assert_allclose(moments.mean, frame[["a", "b", "c"]].mean(), rtol=1e-5)
    assert "2 of 2 domains, 60 samples" in result.stdout
    assert "Samples: 3 features, as they are" in result.stdout
    assert "images" not in result.stdout.lower()
    assert "<th>images" not in Path("f-domains/summary.html").read_text(encoding="utf-8")


# Gone on with.


def test_only_a_domain_whose_files_or_rows_changed_is_made_anew() -> None:
    assert adapt(*OFF, target="m.csv").exit_code == 0
    before = packs()
    assert "3 were there already" in adapt(*OFF, target="m.csv").stdout
    digits.write(Path(next(iter(manifest()["path"]))), torch.ones(1, 8, 8))  # of clean
    assert "2 were there already" in adapt(*OFF, target="m.csv").stdout
    changed = {name for name, content in packs().items() if content != before[name]}
    assert changed == {"clean.safetensors", "pooled/pooled.safetensors"}
    table = manifest()
    table.loc[table["domain"] == "dark", "label"] = "7"
    table.to_csv("m.csv", index=False)
    assert "2 were there already" in adapt(*OFF, target="m.csv").stdout
    table.loc[table["domain"] == "flat", "domain"] = "dim"
    table.to_csv("m.csv", index=False)
    assert "2 were there already" in adapt(*OFF, target="m.csv").stdout
    assert list(rows()) == ["clean", "dark", "dim"]
    assert adapt(*OFF, "--out", "whole", target="m.csv").exit_code == 0
    Path("source-domains/flat.safetensors").unlink()
    Path("source-domains/flat.domain.json").unlink()
    assert "3 were there already" in adapt(*OFF, target="m.csv").stdout  # and none is gone now
    assert results() == results("whole")


def test_rows_of_a_table_may_change_beside_a_domain() -> None:
    frame = write_table()
    assert of_features().exit_code == 0
    os.utime("t.csv", ns=(0, 0))
    assert "2 were there already" in of_features().stdout
    first = frame.index[frame["domain"] == "south"][0]
    write_table(frame.drop(first))
    assert "1 were there already" in of_features().stdout
    assert rows("f-domains")["south"]["images"] == 19


def test_of_an_array_all_are_made_anew_when_its_file_changed() -> None:
    write_array("all.npz")
    assert adapt(*OFF, target="all.npz").exit_code == 0
    assert "3 were there already" in adapt(*OFF, target="all.npz").stdout
    os.utime("all.npz", ns=(0, 0))
    assert "already" not in adapt(*OFF, target="all.npz").stdout


# Several processes.


def adapt_in_job(folder: str, target: str) -> tuple[list[str], int]:
    os.chdir(folder)
    run = adapt_domain_folders("source.pt", target, device="cpu", out="job", guard="off")
    return run.failed, len(run.rows)


@pytest.mark.parametrize("target", [pytest.param("m.csv", marks=pytest.mark.slow), "all.npz"])
def test_processes_make_the_same(here: Path, target: str) -> None:
    write_array("all.npz", weight=np.linspace(1, 2, 3 * EACH))
    assert adapt(*OFF, "--out", "whole", target=target).exit_code == 0
    assert values(job(2, adapt_in_job, str(here), target)) == [([], 3)] * 2
    assert results("job") == results("whole")


# What is wrong.


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "x" * 201, "é" * 101])
def test_a_name_that_no_file_can_have(name: str) -> None:
    table = manifest()
    table.loc[3, "domain"] = name
    table.to_csv("m.csv", index=False)
    fails("m.csv: domain ", target="m.csv")
    fails(" cannot be the name of a file", target="m.csv")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_a_name_that_no_table_could_hold(name: str) -> None:
    write_array("all.npz")
    arrays = dict(np.load("all.npz"))
    arrays["domain"][3] = name
    np.savez("all.npz", **arrays)
    fails(" cannot be the name of a file", target="all.npz")


def test_odd_names() -> None:
    names = dict(zip(NAMES, ["summary", "día 1", "pooled"], strict=True))
    manifest().replace({"domain": names}).to_csv("m.csv", index=False)
    result = adapt(*OFF, target="m.csv")
    assert result.exit_code == 0, result.output
    assert rows().keys() == {*names.values()}
    assert len(packs()) == 4


def test_a_file_without_domains() -> None:
    manifest().drop(columns="domain").to_csv("m.csv", index=False)
    fails("m.csv says of no sample which domain it is of: name a column 'domain'", target="m.csv")


def test_a_domain_of_files_that_are_not_there_fails_alone() -> None:
    table = manifest()
    gone = table["domain"] == "dark"
    table.loc[gone, "path"] = "nowhere/" + table.loc[gone, "path"]
    table.to_csv("m.csv", index=False)
    result = adapt(*OFF, target="m.csv")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 1 of 3 domains failed: dark;")
    assert "none of the 40 images in m.csv can be read" in rows()["dark"]["error"]
    summary = json.loads(Path("source-domains/summary.json").read_text())
    assert summary["pooled"]["samples"] == 2 * EACH
    assert summary["pooled"]["note"] == "Samples of dark, which failed, may be among its own."


def test_results_do_not_go_beside_the_file() -> None:
    Path("data").mkdir()
    shutil.move("domains", "data/domains")
    table = pd.read_csv("m.csv")
    table.to_csv("data/m.csv", index=False)
    fails("data/m.csv is an input, and lies in data: give another --out", "--out", "data",
          target="data/m.csv")  # fmt: skip


def test_source_data_of_another_form_is_refused() -> None:
    write_table()
    np.savez("other.npz", x=np.zeros((30, 5), np.float32), y=np.arange(30) % 2)
    result = of_features("--guard", "auto", "--source-data", "other.npz")
    assert result.exit_code == 1
    assert "expected source data of the target's form" in result.stderr
