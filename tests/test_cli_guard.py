"""`adapt --guard`, `calibrate`, `--domains auto` and `--input-fit`, as their users have them."""

import json
from pathlib import Path
from typing import Any

import digits
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from adaptkit import Statistics, load_checkpoint
from adaptkit.domains import RoutedModel
from adaptkit.norms import norm_layers, read
from cli import main

NAMES = [f"digit {k}" for k in range(10)]
UNNAMED = ["--arch", "adaptkit:small_cnn", "--image-size", "8", "--channels", "1"]
UNNAMED += ["--mean", "0.5", "--std", "0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, calibrated and not, with names and as a plain state dict, and targets."""
    place = tmp_path_factory.mktemp("guard")
    digits.save(place / "source.pt", NAMES)
    torch.save(load_checkpoint(place / "source.pt").model.state_dict(), place / "plain.pt")
    x, y = digits.images()
    for number in range(300):
        digits.write(place / "source" / NAMES[int(y[number])] / f"{number}.png", x[number])
    for number in range(1397, len(y)):
        image, name = x[number], NAMES[int(y[number])]
        low = 0.5 + 0.3 * (image - 0.5)
        for target, spoilt in (("low", low), ("clean", image), ("inverted", 1 - image)):
            digits.write(place / target / name / f"{number}.png", spoilt)
        digits.write(place / "flat" / f"{number}.png", low)
        mixed = image if number % 2 else 0.3 * image
        digits.write(place / "mixed" / name / f"{number}.png", mixed)
        if int(y[number]) in (3, 8):
            digits.write(place / "few" / name / f"{number}.png", low)
    for name, more in (("source", []), ("plain", UNNAMED)):
        line = ["--source", str(place / f"{name}.pt"), "--source-data", str(place / "source")]
        out = ["--out", str(place / f"{name}-calibrated.pt"), "--device", "cpu"]
        result = CliRunner().invoke(main, ["calibrate", *line, *out, *more])
        assert result.exit_code == 0, result.output
        assert "Calibrated 4 norm layers for 10 classes on 300 images" in result.stdout
    return place


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder


def adapt(here: Path, target: str, *more: str, source: str = "source-calibrated") -> Result:
    line = ["--source", str(here / f"{source}.pt"), "--target", str(here / target)]
    return CliRunner().invoke(main, ["adapt", *line, "--out", "x.pt", "--device", "cpu", *more])


def said() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("x.json").read_text())
    return found


def accuracies() -> tuple[float, float]:
    row = pd.read_csv("x.csv").query("metric == 'accuracy' and scope == 'all'").iloc[0]
    return float(row.before), float(row.after)


def means(path: Path | str, arch: str | None = None) -> list[Tensor]:
    layers = norm_layers(load_checkpoint(path, arch=arch).model)
    return [read(layer).mean for layer in layers.values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("source", ["source", "source-calibrated"])
def test_low_contrast_is_adapted_to_and_the_choice_is_told_everywhere(
    here: Path, source: str
) -> None:
    result = adapt(here, "low", source=source)
    assert result.exit_code == 0, result.output
    before, after = accuracies()
    assert after > max(0.85, before + 0.3)
    calibrated = source == "source-calibrated"
    assert f"labels, {'with' if calibrated else 'without'} a calibration" in " ".join(
        result.stdout.split()
    )
    assert "severity of the shift" in result.stdout
    guard = said()["guard"]
    assert guard["mode"] == "auto"
    assert guard["followed"]
    assert guard["choice"] in ("corrected", "balanced", "early")
    assert guard["calibrated"] == calibrated
    assert guard["grounds"]
    assert guard["figures"]["severity"] > 0.3
    assert (guard["class_shares"] is not None) == (guard["choice"] == "corrected")
    page = Path("x.html").read_text()
    assert "The guard takes the target" in page
    assert "What the guard went by" in page
    assert load_checkpoint("x.pt").adapted["guard"] == guard["choice"]  # type: ignore[index]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_clean_images_keep_the_source(here: Path) -> None:
    result = adapt(here, "clean", "--certify")
    assert result.exit_code == 0, result.output
    assert "Kept the source's statistics" in result.stdout
    assert "The guard kept the source model, so nothing changed." in result.stdout
    assert "Largest standard error" not in result.stdout
    assert "no certificate: the statistics are the source's" in " ".join(result.stdout.split())
    assert same(means("x.pt"), means(here / "source.pt"))
    assert said()["guard"]["choice"] == "source"
    before, after = accuracies()
    assert before == after


def test_two_classes_at_low_contrast_are_corrected_for(here: Path) -> None:
    assert adapt(here, "few").exit_code == 0
    guarded = accuracies()[1]
    shares = said()["guard"]["class_shares"]
    assert shares["digit 3"] + shares["digit 8"] > 0.7
    assert adapt(here, "few", "--guard", "off", "--force").exit_code == 0
    assert said()["guard"] is None
    assert guarded > accuracies()[1] + 0.2


def test_report_says_what_it_would_have_done_and_adapts_all_the_same(here: Path) -> None:
    result = adapt(here, "clean", "--guard", "report")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "The guard was not followed: it would have kept the source's statistics" in text
    assert "Adapted 4 norm layers" in text
    assert not same(means("x.pt"), means(here / "source.pt"))
    assert said()["guard"]["followed"] is False
    assert load_checkpoint("x.pt").adapted  # and off is the same but for the words
    reported = means("x.pt")
    assert adapt(here, "clean", "--guard", "off", "--force").exit_code == 0
    assert same(means("x.pt"), reported)


@pytest.mark.parametrize("target", ["low", "flat"])
def test_a_model_without_names_of_classes(here: Path, target: str) -> None:
    result = adapt(here, target, *UNNAMED, source="plain-calibrated")
    assert result.exit_code == 0, result.output
    shares = said()["guard"]["class_shares"]
    assert shares is None or len(shares) == 10
    state = torch.load("x.pt", weights_only=True)
    assert set(state) == set(torch.load(here / "plain.pt", weights_only=True))


def test_labelled_source_images_calibrate_the_guard(here: Path) -> None:
    result = adapt(here, "few", "--source-data", str(here / "source"), source="source")
    assert result.exit_code == 0, result.output
    assert said()["guard"]["calibrated"]
    lacking = ["--source-data", str(here / "few")]
    result = adapt(here, "low", *lacking, "--force", source="source")
    assert result.exit_code == 0, result.output
    assert "do not calibrate the guard" in " ".join(result.stdout.split())
    assert not said()["guard"]["calibrated"]


def test_shares_that_are_given_are_called_so(here: Path) -> None:
    result = adapt(here, "low", "--class-shares", "uniform")
    assert result.exit_code == 0, result.output
    assert "mix of classes, given: " in result.stdout
    assert said()["guard"]["choice"] == "corrected"


def test_statistics_alone_of_what_the_guard_kept_are_the_sources(here: Path) -> None:
    line = ["--stats-only", "--out", "s.safetensors"]
    assert adapt(here, "clean", *line).exit_code == 0
    pack = Statistics.load("s.safetensors")
    model = load_checkpoint(here / "source.pt").model
    for name, layer in norm_layers(model).items():
        torch.testing.assert_close(pack[name].mean.float(), read(layer).mean)


def test_several_domains_are_adapted_to_each_by_itself(here: Path) -> None:
    # What the guard says of each depends on the last digits of the processor that trained the net.
    result = adapt(here, "mixed", "--domains", "auto", "--guard", "off")
    assert result.exit_code == 0, result.output
    assert "The target is 2 domains" in result.stdout
    before, after = accuracies()
    assert after > before + 0.1
    images = pd.read_csv("x-domains.csv")
    odd = images["image"].str.extract(r"(\d+)\.png")[0].astype(int) % 2
    assert images.groupby("domain").apply(lambda g: odd[g.index].mean()).round(1).isin([0, 1]).all()
    model = load_checkpoint(here / "source.pt").model
    routed = RoutedModel.from_bytes(Path("x-domains.safetensors").read_bytes(), model)
    x, y = digits.images()
    x, y = 2 * x[1397:] - 1, y[1397:]
    dark = torch.arange(1397, 1797) % 2 == 0
    x[dark] = 0.3 * (x[dark] + 1) - 1
    with torch.no_grad():
        right = (routed(x).argmax(1) == y).float().mean().item()
    assert right == pytest.approx(after, abs=0.01)
    for number in (1, 2):
        adapted = load_checkpoint(f"x-domain-{number}.pt").adapted
        assert adapted
        assert adapted["domain"] == f"domain {number}"
    assert not Path("x.pt").exists()
    assert len(said()["domains"]) == 2
    again = adapt(here, "mixed", "--domains", "auto")
    assert again.exit_code != 0
    assert "exists" in again.stderr


def test_one_domain_is_adapted_to_as_ever(here: Path) -> None:
    result = adapt(here, "low", "--domains", "auto")
    assert result.exit_code == 0, result.output
    assert "the target looks like one domain" in result.stdout
    assert Path("x.pt").exists()
    assert said()["domains"] is None


def test_an_input_fit_sets_inverted_images_right_and_is_reported_apart(here: Path) -> None:
    result = adapt(here, "inverted", "--input-fit")
    assert result.exit_code == 0, result.output
    assert "Input fit: gain -" in result.stdout
    assert "by itself it gives an accuracy of" in " ".join(result.stdout.split())
    fit = said()["input_fit"]
    assert fit["gain"][0] < 0
    before, after = accuracies()
    assert fit["accuracy_alone"] > 0.9
    assert after > max(0.9, before + 0.5)
    assert "not among those" not in result.stdout
    transform = load_checkpoint("x.pt").transform
    assert transform
    assert transform.gain
    # What is written takes the images as they are.
    second = CliRunner().invoke(
        main,
        ["adapt", "--source", "x.pt", "--target", str(here / "inverted"), "--out", "y.pt", "-q"],
    )
    assert second.exit_code == 0
    row = pd.read_csv("y.csv").set_index("metric").loc["accuracy"]
    assert row["before"] == pytest.approx(after)


def test_an_input_fit_of_clean_images_changes_nothing(here: Path) -> None:
    result = adapt(here, "clean", "--input-fit")
    assert result.exit_code == 0, result.output
    assert "no gain and offset of the images" in " ".join(result.stdout.split())
    transform = load_checkpoint("x.pt").transform
    assert transform
    assert transform.gain is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--input-fit", "--stats-only", "--out", "x.safetensors"],
            "leave out --stats-only and --domains auto",
        ),
        (["--input-fit", "--domains", "auto"], "leave out --stats-only and --domains auto"),
        (["--method", "adain", "--guard", "report"], "leave out guard"),
        (["--method", "adain", "--domains", "auto"], "leave out domains"),
        (["--guard", "on"], "'on' is not one of 'auto', 'off', 'report'"),
    ],
)
def test_one_line_for_what_does_not_go_together(here: Path, more: list[str], message: str) -> None:
    result = adapt(here, "low", *more)
    assert result.exit_code in (1, 2)
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(Path().iterdir())


def test_a_calibration_of_another_head_is_refused_in_a_line(here: Path) -> None:
    tree = torch.load(here / "source-calibrated.pt", weights_only=True)
    tree["state_dict"]["classifier.weight"] = tree["state_dict"]["classifier.weight"][:5].clone()
    tree["state_dict"]["classifier.bias"] = tree["state_dict"]["classifier.bias"][:5].clone()
    tree["arch_kwargs"]["num_classes"], tree["classes"] = 5, NAMES[:5]
    torch.save(tree, "five.pt")
    line = ["adapt", "--source", "five.pt", "--target", str(here / "flat"), "--out", "x.pt"]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 1
    assert "a calibration of 10 classes, and its model gives 5" in result.stderr


def test_a_model_whose_features_are_no_vectors_is_judged_without_them(
    here: Path, tmp_path: Path
) -> None:
    """Its last linear layer runs twice, so that no layer gives one vector an image."""
    (tmp_path / "twice.py").write_text(
        "from torch import nn\n"
        "class Twice(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.bn = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)\n"
        "        self.head = nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        x = self.bn(self.conv(x)).relu()\n"
        "        return self.head(x.amax((2, 3))) + self.head(x.mean((2, 3)))\n"
    )
    model: dict[str, Any] = {}
    exec((tmp_path / "twice.py").read_text(), model)
    torch.manual_seed(0)
    net: nn.Module = model["Twice"]()
    torch.save(net.state_dict(), "t.pt")
    arch = ["--arch", "twice.py:Twice", *UNNAMED[2:], "--device", "cpu"]
    line = ["--source", "t.pt", "--source-data", str(here / "source"), "--out", "c.pt"]
    assert CliRunner().invoke(main, ["calibrate", *line, *arch]).exit_code == 0
    line = ["--source", "c.pt", "--target", str(here / "low"), "--out", "x.pt"]
    result = CliRunner().invoke(main, ["adapt", *line, *arch])
    assert result.exit_code == 0, result.output
    assert said()["guard"]["choice"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("flat", "expected labels, as class folders give them"),
        ("few", "got 0 of class 0"),
        ("no", "no"),
    ],
)
def test_calibrate_says_in_a_line_what_it_lacks(here: Path, data: str, message: str) -> None:
    line = ["--source", str(here / "source.pt"), "--source-data", str(here / data)]
    result = CliRunner().invoke(main, ["calibrate", *line, "--out", "c.pt"])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(Path().iterdir())


def test_inspect_says_what_is_known(here: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(here / "source-calibrated.pt")])
    assert "calibrated" in result.stdout
    assert "for 10 classes, accuracy" in result.stdout
    result = CliRunner().invoke(main, ["inspect", str(here / "source.pt"), "--json"])
    assert json.loads(result.stdout)["calibration"] is None


def test_calibrate_keeps_to_its_budget_and_never_writes_over(here: Path) -> None:
    line = ["calibrate", "--source", str(here / "source.pt"), "--device", "cpu"]
    line += ["--source-data", str(here / "source"), "--out", "c.pt"]
    result = CliRunner().invoke(main, [*line, "--budget", "21KB"])
    assert result.exit_code == 0, result.output
    assert "packed to fit, with an error of 0." in result.stdout
    grown = Path("c.pt").stat().st_size - (here / "source.pt").stat().st_size
    assert grown < 22_000
    assert CliRunner().invoke(main, line).exit_code == 1
    small = CliRunner().invoke(main, [*line, "--budget", "1KB", "--force"])
    assert small.exit_code == 1
    assert "allow more" in small.stderr
