"""`adaptkit inspect`: what is printed of a checkpoint, and the same as JSON."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from adaptkit import Transform, adapt, load_checkpoint, save_checkpoint
from adaptkit.architectures import build
from adaptkit.models import SmallCNN
from adaptkit.pipeline import inspect_checkpoint
from cli import main

GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def inspect(*args: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *args])


def trained() -> SmallCNN:
    torch.manual_seed(0)
    net = SmallCNN(num_classes=3, width=4)
    for _ in range(30):
        net(torch.rand(16, 1, 8, 8))
    return net.eval()


def test_what_is_printed() -> None:
    save_checkpoint(
        "x.pt", trained(), arch="adaptkit:small_cnn", classes=["a", "b", "c"], transform=GREY
    )
    run = inspect("x.pt")
    assert run.exit_code == 0, run.output
    assert max(map(len, run.output.splitlines())) <= 80
    for said in (
        "architecture  adaptkit:small_cnn",
        f"parameters    {sum(p.numel() for p in trained().parameters()):,}",
        "tensors: 22 float32, 4 int64",
        "classes       a, b, c",
        "images        8 x 8 (stretched), grey, mean 0.5, std 0.5, from the checkpoint",
        "All norm layers: kind BatchNorm2d, eps 1e-05, momentum 0.1, adaptable yes",
        "features.10         8",
        "4 of 4 norm layers can be adapted.",
    ):
        assert said in run.output
    assert not [path for path in Path().iterdir() if path.name != "x.pt"]


def test_the_same_as_json() -> None:
    net = trained()
    net.features[1].running_var.fill_(1)  # type: ignore[operator]
    net.features[1].running_mean.fill_(0)  # type: ignore[operator]
    net.features[4].running_var[1] = 0  # type: ignore[operator]
    net.features[7].running_mean[0] = 1e3  # type: ignore[operator]
    net.features[10].running_var[:2] = torch.tensor([6e4, 1e-3])  # type: ignore[operator]
    torch.save({"epoch": 1, "ema": {"state_dict": net.half().state_dict()}}, "x.pt")
    found = json.loads(inspect("x.pt", "--json").output)
    assert (found["kind"], found["state_dict"]) == ("torch", "ema.state_dict")
    assert found["arch_kwargs"] == {"width": 4, "in_channels": 1, "num_classes": 3}
    assert found["tensors"] == {"float16": 22, "int64": 4}
    assert found["bytes"] == Path("x.pt").stat().st_size
    assert found["transform"] is None
    assert found["preparation"] == "not known"
    remarks = [layer["remark"] for layer in found["layers"]]
    assert remarks == ["fresh", "1 dead", "far means", "wide"]
    assert found["layers"][1]["dead"] == 1
    assert found["layers"][2]["farthest_mean"] > 100
    assert found["layers"][3]["variance"][1] > 5e4
    assert {layer["channels"] for layer in found["layers"]} == {4, 8}
    text = inspect("x.pt").output
    for word in ("fresh: means 0", "dead: channels of", "far means: a mean", "wide: variances"):
        assert word in text


def test_what_adapting_left_behind_is_shown() -> None:
    save_checkpoint("x.pt", trained(), arch="adaptkit:small_cnn", transform=GREY)
    source = load_checkpoint("x.pt")
    save_checkpoint("y.pt", adapt(source.model, [torch.rand(8, 1, 8, 8)]), like=source)
    output = inspect("y.pt").output
    assert "adapted       source x.pt, sha256" in output
    assert inspect_checkpoint("y.pt").adapted is not None


def test_layers_that_cannot_be_adapted_say_why() -> None:
    torch.save(build("torchvision:convnext_tiny", {"num_classes": 2}).state_dict(), "x.pt")
    run = inspect("x.pt")
    assert "which normalises each sample by itself." in run.output
    assert "0 of 23 norm layers can be adapted: AdaBN has nothing to do." in run.output
    torch.save(build("torchvision:alexnet", {"num_classes": 2}).state_dict(), "y.pt")
    assert "no normalisation layer, so there is nothing to adapt" in inspect("y.pt").output
    torch.save(build("ibn:resnet18_ibn_b", {"num_classes": 2}).state_dict(), "z.pt")
    found = inspect_checkpoint("z.pt")
    assert len(found.layers) - len(found.adaptable) == 3
    assert {layer.kind for layer in found.layers if not layer.adaptable} == {
        "GuardedInstanceNorm2d"
    }


def test_files_of_other_kinds() -> None:
    state = {f"module.{k}": v for k, v in trained().state_dict().items()}
    save_file(state, "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    Path("model.safetensors.index.json").write_text(json.dumps(index))
    found = inspect_checkpoint("model.safetensors.index.json")
    assert found.kind == "sharded safetensors"
    assert found.bytes == sum(path.stat().st_size for path in Path().iterdir())
    torch.save({**state, "n_averaged": torch.tensor(3)}, "x.pt")
    assert inspect_checkpoint("x.pt").notes[1] == (
        "1 tensor is not the model's and stays: n_averaged."
    )


def test_what_cannot_be_read() -> None:
    torch.save({"w": nn.Parameter(torch.zeros(2))}, "x.pt")
    for name in ("x.pt", "missing.pt"):
        run = inspect(name)
        assert run.exit_code == 1
        assert run.output.startswith("Error: ")
        assert len(run.output.splitlines()) == 1
