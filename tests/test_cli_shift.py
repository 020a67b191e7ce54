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
    write(folder / "one", x[1350:1351], None)
    write(folder / "few", x[1350:1355], y[1350:1355])
    write(folder / "some", x[900:960], y[900:960])
    write(folder / "named", x[900:930], np.array(["cat", "dog"])[y[900:930] % 2])
    for name in ("broken", "half"):
        write(folder / name, x[1350:1360], None)
        for image in sorted((folder / name).iterdir())[: None if name == "broken" else 1]:
            image.write_bytes(b"nothing")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return made


def run(*line: object) -> Result:
    return CliRunner().invoke(main, [*map(str, line), "--device", "cpu"])


def rows(path: str = "net-shift.csv") -> Any:
    return pd.read_csv(path).set_index(["metric", "scope"])


def test_json_stands_alone_on_stdout(here: Path) -> None:
    result = run("shift", "--model", here / "net.pt", "--target", here / "source", "--json", "-q")
    assert result.exit_code == 0, result.output
    assert result.stdout == Path("net-shift.json").read_text(encoding="utf-8")


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
    assert record["verdict"] in " ".join(result.stdout.split())
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
    contrast = table.loc[("input_shift", "feature:images.contrast")]
    assert contrast.before == contrast.after < -2  # AdaBN leaves the images alone
    assert table.loc[("input_shift_p", "feature:images.width"), "before"] == 1  # all are 8 wide
    assert np.isnan(table.loc[("input_shift", "feature:images.width"), "before"])
    images = table.xs("feature:images", level="scope")
    assert set(images.index) == set(at.index)  # as of any features
    assert images.loc["c2st_auc_p", "before"] < 0.001
    assert table.p_value.isna().all()  # that column is of changes
    assert 0 < table.loc[("accuracy_atc", "all"), "before"] < 1
    for when in ("before", "after"):
        assert table.loc["estimated_share"][when].sum() == pytest.approx(1)
    scopes = {scope.partition(":")[0] for scope in table.index.get_level_values("scope")}
    assert scopes == {"all", "class", "layer", "feature"}
    record = json.loads(Path("net-shift.json").read_text())
    assert record["samples"] == {"target": 447, "source": 450}


def test_no_shift_is_found_where_there_is_none(here: Path) -> None:
    result = run(
        *("shift", "--model", here / "net.pt", "--target", here / "same"),
        *("--source-data", here / "source", "--samples", "250"),
    )
    assert result.exit_code == 0, result.output
    at = rows().xs("feature:pooled", level="scope")
    assert at.loc["c2st_auc", "before"] < 0.75  # other writers
    assert at.loc["frechet", "before"] < 5
    assert "class shares seem to have moved" not in result.stdout


def test_moved_shares_are_told_from_moved_images(here: Path) -> None:
    line: tuple[object, ...] = ("--target", here / "two", "--source-data", here / "source")
    result = run("shift", "--model", here / "net.pt", *line, "--samples", "300")
    assert result.exit_code == 0, result.output
    assert "class shares seem to have moved, not its images" in " ".join(result.stdout.split())
    shares = rows().loc["estimated_share"].before
    assert shares[["class:3", "class:5"]].sum() > 0.9
    adapted = run("adapt", "--source", here / "net.pt", *line)
    assert "class shares seem to have moved" in " ".join(adapted.stdout.split())
    record = json.loads(Path("net-adapted.json").read_text())
    assert any("class shares seem to have moved" in note for note in record["notes"])
    assert "norm layers see another domain" in record["verdict"]
    covariate = run(
        *("shift", "--model", here / "net.pt", "--target", here / "target", *line[2:]),
        *("--samples", "300", "--force"),
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
    ("target", "source", "note"),
    [
        ("one", "some", "too few images (60 of the source, 1 of the target) for mmd2, frechet"),
        ("some", "one", "too few images (1 of the source, 60 of the target) for mmd2, frechet"),
        ("few", "some", "for proxy_a_distance, c2st_auc, which are left out"),
        ("some", "few", "the source images lack 7 of 10 classes"),
        ("few", "one", "the source images have no labels, so the target's accuracy is not"),
        ("few", "named", "(cat, dog) is named like a class of the checkpoint"),
    ],
)
def test_what_few_or_unlabelled_images_cannot_tell(
    here: Path, target: str, source: str, note: str
) -> None:
    line = ("--target", here / target, "--source-data", here / source)
    result = run("shift", "--model", here / "net.pt", *line)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert note in words
    assert any(note in said for said in json.loads(Path("net-shift.json").read_text())["notes"])
    assert ("A single image cannot tell" in words) == (target == "one")
    table = rows()
    assert ("energy", "feature:pooled") in table.index
    assert ("mmd2" in table.xs("feature:pooled", level="scope").index) == (
        "one" not in (target, source)
    )
    adapted = run("adapt", "--source", here / "net.pt", *line)
    assert adapted.exit_code == 0, adapted.output
    assert note in " ".join(adapted.stdout.split())


def test_what_cannot_be_read_is_named_in_either_folder(here: Path) -> None:
    line = ("--target", here / "half", "--source-data", here / "half", "--skip-bad")
    for command in (("shift", "--model"), ("adapt", "--source")):
        result = run(*command, here / "net.pt", *line)
        assert result.exit_code == 0, result.output
        assert "Skipped 2 that cannot be read" in result.stdout
        assert f"{here / 'half' / '0000.png'}: " in result.stdout
    for name in ("net-shift.json", "net-adapted.json"):
        skipped = json.loads(Path(name).read_text())["skipped"]
        assert [*skipped] == ["0000.png", str(here / "half" / "0000.png")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--target", "BROKEN"], "none of the 10 images in"),
        (["--source-data", "BROKEN"], "can be read, the first being 000"),
        (["--arch", "torchvision:resnet81"], "unknown architecture"),  # not for classes
        (["--target", "missing"], "missing"),
        (["--layer", "nothing"], "no layer 'nothing'"),
        (["--report", "r.txt"], "a report ending in .csv"),
        (["--source-data", "empty"], "empty"),
    ],
)
def test_mistakes_are_one_line(here: Path, args: list[str], message: str) -> None:
    Path("empty").mkdir()
    line: dict[str, object] = {"--target": here / "target", "--source-data": here / "source"}
    given = [here / "broken" if word == "BROKEN" else word for word in args]
    line |= dict(zip(args[::2], given[1::2], strict=True))
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
