"""IBN-Nets: the published keys and sizes, torchvision's forward around them, and adapting them."""

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from reference import by_definition, worst_error
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from adaptkit import AdaptkitError, CheckpointError, adapt, load_checkpoint, save_checkpoint
from adaptkit.layers import IBN
from adaptkit.models import IBN_NETS, IBNDenseNet, IBNResNet
from adaptkit.models.se import SqueezeExcitation
from adaptkit.norms import norm_layers
from cli import main

# Of the published checkpoints: keys of the state dict, and parameters.
PUBLISHED = {
    "resnet18_ibn_a": (134, 11_689_512),
    "resnet50_ibn_a": (346, 25_557_032),
    "resnet50_ibn_b": (321, 25_558_568),
    "resnext101_ibn_a": (686, 44_177_704),
    "se_resnet101_ibn_a": (752, 49_292_328),
    "densenet121_ibn_a": (755, 7_978_856),
}
PLAIN = {"resnext50": "resnext50_32x4d"}  # torchvision's names, where they are others


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return IBN_NETS[name](**kwargs)


def keys_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def seeded(model: nn.Module) -> nn.Module:
    """Give a model weights and statistics that are not the neutral ones; in eval mode."""
    g = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            neutral = 1.0 if name.endswith(("weight", "var")) else 0.0
            tensor.copy_(neutral + 0.3 * torch.rand(tensor.shape, generator=g))
    return model.eval()


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 + 1


# Keys and sizes.


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    model = on_meta(name)
    parameters = sum(p.numel() for p in model.parameters())
    assert (len(model.state_dict()), parameters) == PUBLISHED[name]


def test_these_are_the_names() -> None:
    assert set(IBN_NETS) == {
        *(f"resnet{depth}_ibn_{kind}" for depth in (18, 34, 50, 101, 152) for kind in "ab"),
        *("resnext50_ibn_a", "resnext101_ibn_a", "se_resnet50_ibn_a", "se_resnet101_ibn_a"),
        *("densenet121_ibn_a", "densenet169_ibn_a", "densenet201_ibn_a"),
    }


@pytest.mark.parametrize("name", [n for n in IBN_NETS if not n.startswith(("se", "resnext101"))])
def test_all_else_is_torchvisions(name: str) -> None:
    base = name.split("_")[0]
    with torch.device("meta"):
        plain = torchvision.models.get_model(PLAIN.get(base, base), weights=None)
    theirs, ours = keys_of(plain), keys_of(on_meta(name))
    assert {k: v for k, v in ours.items() if ".IN." not in k and ".BN." not in k} == {
        k: v for k, v in theirs.items() if k in ours
    } | {k: v for k, v in ours.items() if k.startswith("bn1.")}
    for key in set(theirs) - set(ours):  # a norm's two parts have what the whole had
        layer, _, kind = key.rpartition(".")
        if kind in ("weight", "bias"):
            assert ours[f"{layer}.IN.{kind}"][0] + ours[f"{layer}.BN.{kind}"][0] == theirs[key][0]
        else:
            assert f"{layer}.BN.{kind}" in ours or (layer, name[-1]) == ("bn1", "b")


def test_ibn_a_is_in_every_block_of_the_first_three_stages() -> None:
    for depth, counts in ((18, (2, 2, 2)), (50, (3, 4, 6))):
        model = on_meta(f"resnet{depth}_ibn_a")
        expected = {f"layer{i + 1}.{j}.bn1" for i in range(3) for j in range(counts[i])}
        assert {n for n, m in model.named_modules() if isinstance(m, IBN)} == expected
    keys = keys_of(on_meta("resnet50_ibn_a"))
    first = {k.removeprefix("layer1.0.bn1."): v for k, v in keys.items() if "layer1.0.bn1" in k}
    assert first == {
        "IN.weight": (32,),
        "IN.bias": (32,),
        "BN.weight": (32,),
        "BN.bias": (32,),
        "BN.running_mean": (32,),
        "BN.running_var": (32,),
        "BN.num_batches_tracked": (),
    }
    assert keys["bn1.running_mean"] == (64,)
    assert keys_of(on_meta("resnext50_ibn_a"))["layer1.0.bn1.IN.weight"] == (64,)


def test_ibn_b_is_in_the_stem_and_at_the_end_of_two_stages() -> None:
    for name, expected in {
        "resnet50_ibn_b": {"bn1": 64, "layer1.2.IN": 256, "layer2.3.IN": 512},
        "resnet18_ibn_b": {"bn1": 64, "layer1.1.IN": 64, "layer2.1.IN": 128},
    }.items():
        found = {
            n: m.num_features
            for n, m in on_meta(name).named_modules()
            if isinstance(m, nn.InstanceNorm2d)
        }
        assert found == expected
        assert set(keys_of(on_meta(name))) >= {
            f"{n}.{k}" for n in expected for k in ("weight", "bias")
        }
        assert "bn1.running_mean" not in keys_of(on_meta(name))


def test_se_gates_have_the_published_keys() -> None:
    keys = keys_of(on_meta("se_resnet50_ibn_a"))
    gates = {k: v for k, v in keys.items() if ".se." in k}
    assert len(gates) == 2 * 16
    assert gates["layer1.0.se.fc.0.weight"] == (16, 256)
    assert gates["layer4.2.se.fc.2.weight"] == (2048, 128)


@pytest.mark.parametrize("depth", [121, 169, 201])
def test_densenets_mix_every_third_layer_batch_norm_first(depth: int) -> None:
    counts = {121: (6, 12, 24), 169: (6, 12, 32), 201: (6, 12, 48)}[depth]
    mixed = {
        n: m for n, m in on_meta(f"densenet{depth}_ibn_a").named_modules() if isinstance(m, IBN)
    }
    assert set(mixed) == {
        f"features.denseblock{i + 1}.denselayer{j}.norm1"
        for i in range(3)
        for j in range(1, counts[i] + 1, 3)
    }
    first = mixed["features.denseblock1.denselayer1.norm1"]
    assert (first.BN.num_features, first.IN.num_features) == (38, 26)
    # `C - int(C * 0.4)` would be another width at most of these.
    widths = [(m.num_features, m.BN.num_features) for m in mixed.values()]
    assert all(batch == int(channels * (1 - 0.4)) for channels, batch in widths)
    assert sum(batch != channels - int(channels * 0.4) for channels, batch in widths) > 5
    assert all(not m.instance_first for m in mixed.values())


# What they compute.


@pytest.mark.parametrize(("depth", "make"), [(18, resnet18), (50, resnet50)])
@pytest.mark.parametrize("kind", ["a", "b"])
def test_with_the_norms_put_back_it_is_torchvisions(depth: int, make: Any, kind: Any) -> None:
    ours = seeded(IBNResNet(depth, kind, num_classes=4))
    plain = make(num_classes=4).eval()
    for name, module in [*ours.named_modules()]:
        if isinstance(module, IBN):
            ours.set_submodule(name, plain.get_submodule(name))
        elif isinstance(module, nn.InstanceNorm2d):
            parent, _, last = name.rpartition(".")
            put_back = plain.bn1 if name == "bn1" else nn.Identity()
            setattr(ours.get_submodule(parent), last, put_back)
    plain.load_state_dict(ours.state_dict())
    x = images(2, 40)
    assert torch.equal(ours(x), plain(x))


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that gets the module's input and output of the next forward."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(
        lambda _, args, out: found.extend([args[0].clone(), out.clone()])
    )
    yield found
    hook.remove()


@pytest.mark.parametrize("depth", [18, 50])
def test_ibn_b_normalises_after_the_addition_and_before_the_relu(depth: int) -> None:
    model = seeded(IBNResNet(depth, "b", num_classes=4))
    block = model.get_submodule("layer2")[-1]  # type: ignore[index]
    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    with (
        torch.no_grad(),
        recorded(block) as whole,
        recorded(block.IN) as norm,
        recorded(last) as branch,
    ):
        model(images(2, 40))
    torch.testing.assert_close(norm[0], branch[1] + whole[0])
    values = norm[0].double().numpy()
    mean, variance = values.mean((2, 3), keepdims=True), values.var((2, 3), keepdims=True)
    weight, bias = (p.detach().double().numpy()[:, None, None] for p in block.IN.parameters())
    normal = (values - mean) / np.sqrt(variance + 1e-5) * weight + bias
    np.testing.assert_allclose(whole[1].numpy(), normal.clip(0), atol=1e-4)


def test_se_scales_after_the_last_norm_and_before_the_addition() -> None:
    model = seeded(IBNResNet(50, "a", num_classes=4, squeeze_excitation=True))
    block = model.get_submodule("layer3")[1]  # type: ignore[index]
    with (
        torch.no_grad(),
        recorded(block) as whole,
        recorded(block.bn3) as branch,
        recorded(block.se) as gated,
    ):
        model(images(2, 40))
    assert torch.equal(gated[0], branch[1])
    x = branch[1].double().numpy()
    first, second = (p.detach().double().numpy() for p in block.se.parameters())
    gate = 1 / (1 + np.exp(-np.maximum(x.mean((2, 3)) @ first.T, 0) @ second.T))
    scaled = x * gate[:, :, None, None]
    np.testing.assert_allclose(gated[1].numpy(), scaled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        whole[1].numpy(), (scaled + whole[0].double().numpy()).clip(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18_ibn_a", [(16, 16), (17, 33), (64, 40)]),
        ("resnet18_ibn_b", [(8, 8), (33, 17)]),
        ("resnext50_ibn_a", [(32, 48)]),
        ("se_resnet50_ibn_a", [(48, 32)]),
        ("densenet121_ibn_a", [(32, 32), (40, 64)]),
    ],
)
def test_images_of_any_size(name: str, sizes: list[tuple[int, int]]) -> None:
    model = IBN_NETS[name](num_classes=5).eval()
    with torch.no_grad():
        for size in sizes:
            assert model(torch.randn(2, 3, *size)).isfinite().all()
            assert model(torch.randn(1, 3, *size)).shape == (1, 5)
        assert model(torch.zeros(0, 3, *sizes[-1])).shape == (0, 5)


@pytest.mark.parametrize("name", ["resnet18_ibn_a", "resnet18_ibn_b", "densenet121_ibn_a"])
def test_a_step_of_training_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = IBN_NETS[name](num_classes=3)
    nn.functional.cross_entropy(model(images(4, 40)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18_ibn_a", "resnet18_ibn_b"])
def test_copies_exports_and_scripts_compute_the_same(name: str) -> None:
    model, x = seeded(IBN_NETS[name](num_classes=3)), images(3, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates scripting
        scripted = torch.jit.script(model)
    batch = ({0: torch.export.Dim.AUTO},)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.export.export(model, (x[:2],), dynamic_shapes=batch).module(),
        scripted,
    ]
    with torch.no_grad():
        for other in others:
            torch.testing.assert_close(other(x), model(x))


def test_blocks_are_torchvisions() -> None:
    for model, kind in ((IBNResNet(18, "a"), BasicBlock), (on_meta("resnet50_ibn_b"), Bottleneck)):
        assert all(isinstance(b, kind) for b in model.get_submodule("layer3").children())


def test_bad_arguments() -> None:
    with pytest.raises(AdaptkitError, match=r"depth of 18, 34, 50, 101, 152 and .* got 20 and 'a'"):
        IBNResNet(20, "a")
    with pytest.raises(AdaptkitError, match="a kind of a or b, got 18 and 'c'"):
        IBNResNet(18, "c")  # type: ignore[arg-type]
    with pytest.raises(AdaptkitError, match="Expected a depth of 121, 169, 201, got 161"):
        IBNDenseNet(161)
    assert SqueezeExcitation(8, reduction=2)(torch.zeros(0, 8, 2, 2)).shape == (0, 8, 2, 2)


# Files.


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return seeded(IBNResNet(18, "a", num_classes=3))


def as_published(model: nn.Module) -> dict[str, Any]:
    """A file as training inside DataParallel left it, with no `num_batches_tracked`."""
    return {
        "epoch": 99,
        "state_dict": {
            f"module.{k}": v
            for k, v in model.state_dict().items()
            if not k.endswith("num_batches_tracked")
        },
        "best_acc": 71.0,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
    }


def as_of_torch_0_3(model: nn.Module) -> dict[str, Any]:
    """As `as_published`, with the statistics that InstanceNorm stored then and did not use."""
    file = as_published(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.InstanceNorm2d):
            for key in ("running_mean", "running_var"):
                file["state_dict"][f"module.{name}.{key}"] = torch.full((layer.num_features,), 7.0)
    return file


@pytest.mark.parametrize(
    "form", [nn.Module.state_dict, as_published, as_of_torch_0_3], ids=lambda f: f.__name__
)
def test_files_of_each_form_load_and_are_written_back_in_it(
    tmp_path: Path, net: nn.Module, form: Any
) -> None:
    torch.save(form(net), tmp_path / "net.pth")
    read = load_checkpoint(tmp_path / "net.pth", arch="ibn:resnet18_ibn_a")
    x = images(2, 32)
    assert torch.equal(read.model(x), net(x))
    adapted = adapt(read.model, [images(8, 32, seed=1)])
    save_checkpoint(tmp_path / "out.pth", adapted, like=read)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    states = [f.get("state_dict", f) for f in (form(net), found)]
    if form is not nn.Module.state_dict:
        assert set(found) == {*form(net), "adaptkit"}
        assert found["epoch"] == 99
    assert list(states[0]) == list(states[1])
    changed = {k for k in states[0] if not torch.equal(states[0][k], states[1][k])}
    prefix = "" if form is nn.Module.state_dict else "module."
    assert changed == {
        f"{prefix}{n}.running_{k}" for n in norm_layers(net) for k in ("mean", "var")
    }
    again = load_checkpoint(tmp_path / "out.pth", arch="ibn:resnet18_ibn_a")
    assert torch.equal(again.model(x), adapted(x))
    assert again.adapted is not None


def test_an_instance_norm_that_uses_its_statistics_does_not_fit(
    tmp_path: Path, net: nn.Module
) -> None:
    file = dict(net.state_dict())
    file["layer1.0.bn1.IN.running_mean"] = torch.zeros(32)
    torch.save(file, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(layer1\.0\.bn1\.IN\.running_mean\)"):
        load_checkpoint(tmp_path / "net.pth", arch="ibn:resnet18_ibn_a")


def test_another_kind_of_net_is_refused_by_key(tmp_path: Path, net: nn.Module) -> None:
    torch.save(as_published(net), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"does not fit ibn:resnet18_ibn_b: .*missing"):
        load_checkpoint(tmp_path / "net.pth", arch="ibn:resnet18_ibn_b")


# Adapting them.


def test_the_adapted_statistics_are_the_definition(net: nn.Module) -> None:
    x = images(24, 40, seed=2)
    names = list(norm_layers(net))
    assert len(names) == 20
    truth = by_definition(net, names, x)
    adapted = adapt(net, x.split(7))
    stored = {
        name: tuple(
            adapted.get_buffer(f"{name}.running_{k}").double().numpy() for k in ("mean", "var")
        )
        for name in names
    }
    assert max(worst_error(stored, truth)) < 1e-5  # type: ignore[arg-type]


def test_the_command_adapts_the_batch_norm_half(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(as_published(net), "net.pth")
    rng = np.random.default_rng(0)
    Path("night").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 99, (30, 40, 3), dtype=np.uint8)).save(f"night/{i}.png")
    line = ["adapt", "--source", "net.pth", "--target", "night", "--device", "cpu"]
    line += ["--guard", "off"]
    result = CliRunner().invoke(main, [*line, "--arch", "ibn:resnet18_ibn_a"])
    assert result.exit_code == 0, result.output
    assert "Adapted 20 norm layers on 4 of 4 images" in result.stdout
    before = as_published(net)["state_dict"]
    after = torch.load("net-adapted.pth", weights_only=True)["state_dict"]
    assert list(before) == list(after)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if k.endswith(("running_mean", "running_var"))}
    assert "module.layer1.0.bn1.BN.running_mean" in changed
