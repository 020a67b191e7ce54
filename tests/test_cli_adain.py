"""`adaptkit adapt --method adain`: the images are restyled, the weights stay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torchvision.models import resnet18, squeezenet1_1

from adaptkit import (
    CheckpointError,
    EstimationError,
    Transform,
    evaluate,
    image_folder,
    load_checkpoint,
    save_checkpoint,
)
from adaptkit.layers import Style, restyle
from adaptkit.models import SmallCNN
from adaptkit.pipeline import adapt_folder
from cli import main

GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.25,))
STYLE = Style(torch.tensor([0.4]), torch.tensor([0.2]))


def write(folder: Path, count: int, seed: int, *, colour: bool = False, dark: float = 1) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3) if colour else (8, 8)) * dark
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "source.pt",
        SmallCNN(in_channels=1, num_classes=3),
        arch="adaptkit:small_cnn",
        classes="abc",
        transform=GREY,
        style=STYLE,
    )
    for seed, name in enumerate("abc"):
        write(tmp_path / "target" / name, 4, seed, dark=0.3)
    write(tmp_path / "images", 9, 7)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str) -> Any:
    return pd.read_csv(path).set_index(["metric", "scope"])


def adapt(*args: object, source: str = "source.pt", target: str = "target") -> Result:
    line = ["adapt", "--source", source, "--target", target, "--method", "adain"]
    return CliRunner().invoke(main, [*line, *map(str, args), "--device", "cpu"])


def test_the_transform_restyles_and_the_weights_stay(here: Path) -> None:
    result = adapt()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Restyled 12 images to the source's, one by one (AdaIN)\n")
    assert "Note:" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    before, after = load_checkpoint("source.pt"), load_checkpoint("source-adapted.pt")
    assert all(torch.equal(v, after.state_dict[k]) for k, v in before.state_dict.items())
    assert after.adapted is not None
    assert after.adapted["method"] == "adain"
    assert after.transform is not None
    assert after.transform == GREY.towards(STYLE)
    image = Image.open("target/a/00.png")
    raw = GREY(image) * 0.25 + 0.5
    expected = (restyle(raw[None], STYLE)[0] - 0.5) / 0.25
    torch.testing.assert_close(after.transform(image), expected, rtol=1e-4, atol=1e-5)

    # What the report says is what the written file does.
    loader = image_folder("target", transform=after.transform, classes=after.classes)
    rows = table("source-adapted.csv")
    assert rows.loc[("accuracy", "all"), "after"] == evaluate(after.model, loader).accuracy
    kl = rows.loc["symmetric_kl"]
    assert len(kl) == 5
    assert (kl.before != kl.after).all()  # the layers are the same, what they see is not
    record = json.loads(Path("source-adapted.json").read_text())
    assert (record["method"], record["transductive"]) == ("adain", None)
    assert record["layers"]["adapted"] == []
    assert record["transform_after"]["style_std"] == [0.2]


def test_one_image_gives_the_same_as_many(here: Path) -> None:
    adapt("--out", "many.pt")
    (here / "one" / "a").mkdir(parents=True)
    (here / "target" / "a" / "02.png").rename(here / "one" / "a" / "02.png")
    assert adapt("--out", "one.pt", target="one").exit_code == 0
    many, one = (load_checkpoint(name).transform for name in ("many.pt", "one.pt"))
    assert many == one


def test_the_style_is_the_source_datas_before_the_checkpoints(here: Path) -> None:
    result = adapt("--source-data", "images", "--report", "r.csv")
    assert result.exit_code == 0, result.output
    transform = load_checkpoint("source-adapted.pt").transform
    assert transform is not None
    images = np.stack([np.asarray(Image.open(p)) for p in sorted(Path("images").iterdir())]) / 255
    assert transform.style_mean == pytest.approx([images.mean((1, 2)).mean()], abs=1e-5)
    assert transform.style_std == pytest.approx([images.std((1, 2)).mean()], abs=1e-3)
    rows = table("r.csv")
    features = rows.loc[("frechet", "feature:pooled")]
    assert features.after != features.before


def test_without_any_style_the_transforms_stands_in(here: Path) -> None:
    saved = torch.load("source.pt", weights_only=True)
    del saved["style"]
    torch.save(saved, "old.pt")
    result = adapt(source="old.pt")
    assert "Note: the style is the transform's mean and std, a stand-in" in result.stdout
    transform = load_checkpoint("old-adapted.pt").transform
    assert transform is not None
    assert (transform.style_mean, transform.style_std) == ((0.5,), (0.25,))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_plain_state_dict_remembers_its_transform(here: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    state = resnet18(num_classes=3).state_dict()
    if suffix == ".pth":
        torch.save(state, "plain.pth")
    else:
        save_file(state, "plain.safetensors")
    write(here / "few", 2, 5, colour=True)
    result = adapt("--arch", "torchvision:resnet18", source=f"plain{suffix}", target="few")
    assert result.exit_code == 0, result.output
    back = load_checkpoint(f"plain-adapted{suffix}", arch="torchvision:resnet18")
    assert back.transform is not None
    assert back.transform.style_mean == (0.485, 0.456, 0.406)
    assert back.transform.image_size == (224, 224)
    assert back.adapted is not None
    assert "transform" not in back.adapted
    resnet18(num_classes=3).load_state_dict(back.state_dict)  # whatever loaded it loads it still


def test_a_model_without_norm_layers(here: Path) -> None:
    torch.save(squeezenet1_1(num_classes=3).state_dict(), "squeeze.pth")
    write(here / "few", 2, 5, colour=True)
    result = adapt("--arch", "torchvision:squeezenet1_1", source="squeeze.pth", target="few")
    assert result.exit_code == 0, result.output
    assert "symmetric_kl" not in Path("squeeze-adapted.csv").read_text()
    line = ["adapt", "--source", "squeeze.pth", "--target", "few"]
    refused = CliRunner().invoke(
        main, [*line, "--arch", "torchvision:squeezenet1_1", "--out", "b.pt"]
    )
    assert "--method adain needs none" in refused.stderr


def test_options_of_adabn_are_refused(here: Path) -> None:
    for args in (("--prior", "8"), ("--stats-only",), ("--layers", "features.1"), ("--certify",)):
        result = adapt(*args)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert f"leave out {args[0].removeprefix('--')}" in result.stderr
    with pytest.raises(EstimationError, match="method to be one of adabn, adain"):
        adapt_folder("source.pt", "target", method="cutmix")  # type: ignore[arg-type]
    assert not list(here.glob("*-adapted*"))


def test_a_broken_style_is_one_line(here: Path) -> None:
    saved = torch.load("source.pt", weights_only=True)
    for style in ({"mean": [0.5]}, {"mean": "x", "std": [1.0]}, {"mean": [1.0, 2.0], "std": [1.0]}):
        torch.save({**saved, "style": style}, "bad.pt")
        with pytest.raises(CheckpointError, match="expected 'style' to hold 'mean' and 'std'"):
            load_checkpoint("bad.pt")
    torch.save({**saved, "style": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "three.pt")
    result = adapt(source="three.pt")
    assert result.exit_code == 1
    assert "style_mean and style_std need one number for each of 1 channels" in result.stderr
