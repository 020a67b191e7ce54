"""`adaptkit shift`, and what source data and held-out images add to `adaptkit adapt`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits

from adaptkit import save_checkpoint
from adaptkit.demo import TRANSFORM, _bytes, _train
from cli import main


def write(folder: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    for number, image in enumerate(images):
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_bytes(image)).save(place / f"{number:04d}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shift")
    digits = load_digits()
    x, y = digits.images / 16, digits.target
    model = _train(x[:900], y[:900], 0, None)
    save_checkpoint(
        folder / "net.pt",
        model,
        arch="adaptkit:small_cnn",
        arch_kwargs={"in_channels": 1, "num_classes": 10},
        classes=[str(k) for k in range(10)],
        transform=TRANSFORM,
    )
    write(folder / "source", x[900:1350], y[900:1350])
    noise = np.random.default_rng(0).normal(0, 0.1, x[1350:].shape)
    write(folder / "target", 0.5 + 0.6 * (x[1350:] - 0.5) + noise, y[1350:])
    write(folder / "same", x[1350:], None)
    two = np.isin(y[1350:], [3, 5])
    write(folder / "two", x[1350:][two], None)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made


def run(*line: object) -> Result:
    return CliRunner().invoke(main, [*map(str, line), "--device", "cpu"])


def rows(path: str = "net-shift.csv") -> Any:
    return pd.read_csv(path).set_index(["metric", "scope"])


def test_without_source_data(here: Path) -> None:
    result = run("shift", "--model", here / "net.pt", "--target", here / "target")
    assert result.exit_code == 0, result.output
    assert "norm layers see another domain" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    table = rows()
    assert set(table.index.get_level_values(0)) == {
        *("symmetric_kl", "mean_shift", "log_var_shift", "statistic_se"),
    }
    assert table.loc[("symmetric_kl", "layer:features.1"), "before"] > 0.1
    assert (table.loc["symmetric_kl"].after == 0).all()
    record = json.loads(Path("net-shift.json").read_text())
    assert record["samples"] == {"target": 447, "source": None}
    assert sorted(p.name for p in Path().iterdir()) == ["net-shift.csv", "net-shift.json"]


def test_with_source_data_every_metric_is_there_before_and_after(here: Path) -> None:
    result = run(
        *("shift", "--model", here / "net.pt", "--target", here / "target"),
        *("--source-data", here / "source"),
    )
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    table = rows()
    at = table.xs("feature:pooled", level="scope")
    for metric in ("mmd2", "energy", "sliced_wasserstein", "frechet", "proxy_a_distance"):
        assert at.loc[metric, "before"] > at.loc[metric, "after"] >= 0  # adapting brings it nearer
    assert set(at.index) >= {"coral", "c2st_auc", "ks_fraction"}
    for metric in ("mmd2_p", "energy_p", "c2st_auc_p", "ks_fraction_p"):
        assert 0 < at.loc[metric, "before"] < 0.05
    assert table.loc[("input_shift", "input:contrast"), "before"] < -2
    assert table.loc[("input_shift", "input:width"), "p_value"] == 1  # all are 8 pixels wide
    assert np.isnan(table.loc[("input_shift", "input:width"), "before"])
    assert 0 < table.loc[("accuracy_atc", "all"), "before"] < 1
    shares = table.loc["estimated_share"].before
    assert shares.sum() == pytest.approx(1)


def test_no_shift_is_found_where_there_is_none(here: Path) -> None:
    result = run(
        *("shift", "--model", here / "net.pt", "--target", here / "same"),
        *("--source-data", here / "source"),
    )
    assert result.exit_code == 0, result.output
    at = rows().xs("feature:pooled", level="scope")
    assert at.loc["c2st_auc", "before"] < 0.75  # other writers
    assert at.loc["frechet", "before"] < 5
    assert "class shares seem to have moved" not in result.stdout


def test_moved_shares_are_told_from_moved_images(here: Path) -> None:
    line: tuple[object, ...] = ("--target", here / "two", "--source-data", here / "source")
    result = run("shift", "--model", here / "net.pt", *line)
    assert result.exit_code == 0, result.output
    assert "class shares seem to have moved, not its images" in " ".join(result.stdout.split())
    shares = rows().loc["estimated_share"].before
    assert shares[["class:3", "class:5"]].sum() > 0.95
    adapted = run("adapt", "--source", here / "net.pt", *line)
    assert "class shares seem to have moved" in " ".join(adapted.stdout.split())
    covariate = run(
        "shift", "--model", here / "net.pt", "--target", here / "target", *line[2:], "--force"
    )
    assert "class shares seem to have moved" not in " ".join(covariate.stdout.split())


def test_held_out_images_are_not_adapted_to(here: Path) -> None:
    line = ("adapt", "--source", here / "net.pt", "--target", here / "target", "--holdout", "0.25")
    result = run(*line)
    assert result.exit_code == 0, result.output
    assert "Adapted 4 norm layers on 335 of 447 images" in result.stdout
    assert "are not among those that were adapted to" in result.stdout
    table = rows("net-adapted.csv")
    assert table.loc[("accuracy", "all"), "n"] == 112
    record = json.loads(Path("net-adapted.json").read_text())
    assert record["transductive"] is None
    matrix = pd.read_csv("net-adapted-confusion.csv")
    assert matrix.before.sum() == matrix.after.sum() == 112
    again = run(*line, "--force")
    assert again.stdout == result.stdout


def test_named_layers_and_reports(here: Path) -> None:
    result = run(
        *("shift", "--model", here / "net.pt", "--target", here / "same"),
        *("--source-data", here / "same", "--layer", "features.1", "--report", "r.csv"),
        *("--samples", "40"),
    )
    assert result.exit_code == 0, result.output
    table = rows("r.csv")
    assert table.loc[("mmd2", "feature:features.1"), "n"] == 40
    assert "accuracy_atc" not in table.index.get_level_values(0)  # no labels in the source


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--target", "missing"], "missing"),
        (["--layer", "nothing"], "no layer 'nothing'"),
        (["--report", "r.txt"], "a report ending in .csv"),
        (["--source-data", "empty"], "empty"),
    ],
)
def test_mistakes_are_one_line(here: Path, args: list[str], message: str) -> None:
    Path("empty").mkdir()
    line: dict[str, object] = {"--target": here / "target", "--source-data": here / "source"}
    line |= dict(zip(args[::2], args[1::2], strict=True))
    words = [word for pair in line.items() for word in pair]
    result = run("shift", "--model", here / "net.pt", *words)
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert [p.name for p in Path().iterdir()] == ["empty"]


def test_outputs_that_exist_are_kept(here: Path) -> None:
    shutil.copy(here / "net.pt", "net-shift.csv")
    result = run("shift", "--model", here / "net.pt", "--target", here / "target")
    assert result.exit_code == 1
    assert "net-shift.csv" in result.stderr
