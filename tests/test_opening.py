"""What a checkpoint's user may say of it: how images are prepared, and what its outputs are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from adaptkit import AdaptkitError, Transform, load_checkpoint, save_checkpoint
from adaptkit.models import SmallCNN
from adaptkit.pipeline import adapt_folder
from adaptkit.pipeline.opening import open_checkpoint, preparation
from cli import main

GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ours.pt, plain.pt, names.txt and images/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    net = SmallCNN(num_classes=3, width=4)
    save_checkpoint("ours.pt", net, arch="adaptkit:small_cnn", transform=GREY)
    torch.save(net.state_dict(), "plain.pt")
    Path("names.txt").write_text("cat\ndog\nemu\n\n")
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = Path("images", ("cat", "dog", "emu")[i % 3])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def adapt(*args: str, source: str = "plain.pt") -> Result:
    line = ["adapt", "--source", source, "--target", "images", "--device", "cpu", *args]
    return CliRunner().invoke(main, line)


def test_a_file_that_says_nothing_needs_an_image_size() -> None:
    run = adapt()
    assert run.exit_code == 1
    said = "plain.pt does not say how images are prepared: give --image-size, --mean, --std as in"
    assert said in run.output
    assert "give --std as in training" in adapt("--image-size", "8", "--mean", "0.5").output
    run = adapt("--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.25")
    assert run.exit_code == 0, run.output
    assert "Images: 8 x 8 (stretched), grey, mean 0.5, std 0.25, from the options" in run.output
    said = json.loads(Path("plain-adapted.json").read_text())
    assert said["transform"] == Transform((8, 8), 1, (0.5,), (0.25,)).to_dict()
    assert said["transform_from"] == "options"
    assert said["outputs"] == {"kind": "classes", "classes": 3}
    assert said["samples"]["labelled"]  # three folders for three outputs
    assert load_checkpoint("plain-adapted.pt").adapted


def test_names_for_the_outputs() -> None:
    options = ["--image-size", "8x10", "--channels", "1", "--mean", ".5", "--std", ".5"]
    run = adapt(*options, "--classes", "names.txt")
    assert run.exit_code == 0, run.output
    assert "accuracy, %" in run.output
    assert "class:emu" in Path("plain-adapted.csv").read_text()
    Path("names.txt").write_text("cat\ndog\n")
    run = adapt(*options, "--classes", "names.txt", "--force")
    assert run.exit_code == 1
    assert "plain.pt has 3 outputs, but 2 class names are given (cat, dog)" in run.output


def test_what_the_user_says_counts_more_and_stays_with_the_file() -> None:
    run = adapt("--mean", "0.4", "--resize", "crop", source="ours.pt")
    assert run.exit_code == 0, run.output
    wanted = Transform((8, 8), 1, (0.4,), (0.5,), "crop")
    assert load_checkpoint("ours-adapted.pt").transform == wanted
    plain = adapt(source="ours-adapted.pt")
    assert "mean 0.4, std 0.5, from the checkpoint" in plain.output


def test_shift_takes_them_too() -> None:
    options = ["--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.5"]
    line = ["shift", "--model", "plain.pt", "--target", "images", "--device", "cpu", *options]
    run = CliRunner().invoke(main, line)
    assert run.exit_code == 0, run.output
    assert "Images: 8 x 8 (stretched), grey, mean 0.5, std 0.5, from the options" in run.output
    assert json.loads(Path("plain-shift.json").read_text())["transform_from"] == "options"


def test_published_transforms_keep_the_share_that_is_seen() -> None:
    torch.save(resnet18(num_classes=2).state_dict(), "r.pt")
    plain = open_checkpoint("r.pt")
    assert preparation(plain).endswith("std 0.229 0.224 0.225, as published for the architecture")
    half = open_checkpoint("r.pt", image_size=(112, 112)).transform
    assert half is not None
    assert (half.image_size, half.resize_size) == ((112, 112), 128)
    grey = open_checkpoint("r.pt", mean=[0.5], std=[0.25]).transform
    assert grey is not None
    assert (grey.mean, grey.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 8)}, "sizes must be whole numbers of pixels"),
        ({"channels": 3}, r"one number for each of 3 channels, got 1 and 1: give --image-size, "),
        ({"mean": [0.1, 0.2]}, "one number for each of 1 channels, got 2 and 1"),
        ({"std": [0.0]}, "std must be positive"),
        ({"mean": [float("nan")]}, "must be numbers"),
        ({"classes": "missing.txt"}, r"cannot read the class names in missing\.txt: No such file"),
        ({"classes": "images"}, r"cannot read the class names in images: Is a directory"),
        ({"classes": "ours.pt"}, r"ours\.pt is no list of class names: expected UTF-8"),
        ({"classes": "empty.txt"}, "is empty: expected class names, one a line"),
        ({"classes": "twice.txt"}, "expected class names, one a line, each another"),
        ({"classes": "gap.txt"}, "expected class names, one a line, each another"),
        ({"arch_kwargs": {"depth": 3}}, "does not take"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    for name, text in {"empty": "\n", "twice": "a\nb\na\n", "gap": "a\n\nb\n"}.items():
        Path(f"{name}.txt").write_text(text)
    with pytest.raises(AdaptkitError, match=message) as caught:
        open_checkpoint("ours.pt", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--image-size", "8x8x8"], "'8x8x8' is not a size such as 224 or 240x320"),
        (["--image-size", "-3"], "is not a size such as"),
        (["--mean", "a,b"], "'a,b' is not a list such as 0.485,0.456,0.406"),
        (["--channels", "2"], "'2' is not one of '1', '3'"),
        (["--arch-arg", "width"], "width"),
        (["--image-size", "2", "--channels", "1", "--mean", "0", "--std", "1"], None),
        (
            ["--image-size", "8", "--mean", "0", "--std", "1"],
            "does not take images of 3 x 8 x 8 (channels, height, width): ",
        ),
    ],
)
def test_options_that_cannot_be_end_in_one_line(args: list[str], message: str | None) -> None:
    run = adapt(*args)
    assert (run.exit_code == 0) == (message is None), run.output
    if message:
        assert message in run.output
        assert [line for line in run.output.splitlines() if line.startswith("Error: ")]
        assert "Traceback" not in run.output


def test_an_architectures_arguments() -> None:
    options = ["--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.5"]
    run = adapt(*options, "--arch", "adaptkit:small_cnn", "--arch-arg", "width=4")
    assert run.exit_code == 0, run.output
    said = json.loads(Path("plain-adapted.json").read_text())
    assert said["checkpoint"]["arch_kwargs"] == {"width": 4}
    run = adapt(*options, "--arch-arg", "width=5", "--force")
    assert run.exit_code == 1
    assert "plain.pt does not fit adaptkit:small_cnn: " in run.output


def test_no_input_is_ever_written_over() -> None:
    """Not even with --force: the source's shards, the names, the user's own code."""
    state = torch.load("plain.pt", weights_only=True)
    save_file(state, "s-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "s-00001-of-00001.safetensors")}
    Path("s.safetensors.index.json").write_text(json.dumps(index))
    Path("names.csv").write_text("cat\ndog\nemu\n")
    prepared = ["--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.5", "--force"]
    sharded = "s.safetensors.index.json"
    for args, source in (
        (["--stats-only", "--out", "s-00001-of-00001.safetensors"], sharded),
        (["--out", "s-00001-of-00001.safetensors"], sharded),
        (["--classes", "names.csv", "--out", "names.pt"], "plain.pt"),
    ):
        run = adapt(*prepared, *args, source=source)
        assert run.exit_code == 1
        assert "is also the input, which is never changed" in run.output


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected arguments: image_sise"):
        adapt_folder("plain.pt", "images", image_sise=(8, 8))  # type: ignore[call-arg]


def test_a_restyled_file_that_is_adapted_again_stays_restyled() -> None:
    prepared = ["--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.5"]
    torch.save({"net": torch.load("plain.pt", weights_only=True), "transform": 3}, "n.pt")
    assert adapt(*prepared, "--method", "adain", source="n.pt").exit_code == 0
    first = load_checkpoint("n-adapted.pt")
    assert first.transform is not None
    assert first.transform.style_mean is not None
    run = adapt("--out", "again.pt", source="n-adapted.pt")
    assert run.exit_code == 0, run.output
    assert load_checkpoint("again.pt").transform == first.transform
    assert torch.load("again.pt", weights_only=True)["transform"] == 3


@pytest.mark.parametrize("line", ["raise KeyError('x')", "return 1 / 0", "return self.nothing"])
def test_models_that_raise_anything(line: str) -> None:
    Path("nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bn = torch.nn.BatchNorm2d(1, affine=False)\n"
        "    def forward(self, x):\n"
        f"        {line}\n"
    )
    torch.save({f"bn.{k}": v for k, v in nn.BatchNorm2d(1, affine=False).state_dict().items()}, "b")
    prepared = ["--image-size", "8", "--channels", "1", "--mean", "0.5", "--std", "0.5"]
    run = adapt(*prepared, "--arch", "nets.py:Net", source="b")
    assert run.exit_code == 1
    assert "does not take images of 1 x 8 x 8 (channels, height, width): " in run.output
    assert isinstance(run.exception, SystemExit)
