"""recognise(): each known architecture from its keys and shapes, and what is said of others."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from make_fingerprints import fingerprints_of, names
from PIL import Image
from torch import Tensor, nn

import adaptkit
from adaptkit import CheckpointError, load_checkpoint
from adaptkit.architectures import arguments_of, without_memory
from adaptkit.checkpoint import save_checkpoint
from adaptkit.fingerprints import TABLE, Fingerprint, digest, dumps, loads, sketch, table
from adaptkit.models import IBN_NETS, SmallCNN
from adaptkit.pipeline.shift import shift_folders
from adaptkit.recognition import recognise

FAMILIES = [
    "ibn:densenet121_ibn_a",
    "ibn:resnet18_ibn_a",
    "ibn:resnet18_ibn_b",
    "ibn:resnext50_ibn_a",
    "ibn:se_resnet50_ibn_a",
    "torchvision:alexnet",
    "torchvision:convnext_tiny",
    "torchvision:densenet121",
    "torchvision:efficientnet_b0",
    "torchvision:efficientnet_v2_s",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:maxvit_t",
    "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_y_400mf",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_0",
    "torchvision:squeezenet1_1",
    "torchvision:swin_t",
    "torchvision:swin_v2_t",
    "torchvision:vgg11",
    "torchvision:vgg11_bn",
    "torchvision:vit_b_16",
    "torchvision:wide_resnet50_2",
]
BUILT_BY = json.loads(Path(adaptkit.__file__).with_name(TABLE).read_text())["torchvision"]


def state_of(arch: str, **kwargs: Any) -> dict[str, Tensor]:
    return dict(without_memory(arch, {"num_classes": 7, **kwargs}).state_dict())


def refused(state_dict: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError, match=r"--arch \(arch=\)") as caught:
        recognise(state_dict)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value).removeprefix("the state dict ")


# The table.


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_table_is_of_the_installed_models(arch: str) -> None:
    for fresh in fingerprints_of(arch):
        assert table()[fresh.digest] == fresh


@pytest.mark.slow
def test_the_whole_table_is_of_the_installed_models() -> None:
    fresh = [known for arch in names() for known in fingerprints_of(arch)]
    assert len({known.digest for known in fresh}) == len(fresh), "two cannot be told apart"
    installed = torchvision.__version__.split("+")[0]
    if installed == BUILT_BY:
        assert [*table().values()] == fresh
    known = {each.arch for each in table().values()}  # a newer torchvision may have more
    assert [each for each in fresh if each.arch in known and each.digest not in table()] == []


def test_every_architecture_is_in_the_table() -> None:
    known = {each.arch for each in table().values()}
    assert {f"ibn:{name}" for name in IBN_NETS} < known
    if torchvision.__version__.split("+")[0] == BUILT_BY:
        assert known == set(names())


def test_the_table_comes_back_from_its_file_and_is_small() -> None:
    text = Path(adaptkit.__file__).with_name(TABLE).read_text()
    assert dumps(loads(text).values(), BUILT_BY) == text
    assert len(text) < 100_000


def test_a_digest_is_of_all_keys_and_shapes_but_not_of_their_order() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (1, 2), "b": (3,)}
    assert digest(shapes) == digest({"b": (3,), "a": (1, 2)})
    others: list[dict[str, tuple[int, ...]]] = [
        {"a": (1, 2)},
        {"a": (2, 1), "b": (3,)},
        {"a": (1, 2), "c": (3,)},
    ]
    assert len({digest(each) for each in [shapes, *others]}) == 4


def test_likeness_estimates_the_share_of_what_two_have_in_common() -> None:
    one = {f"layer{i}": (i,) for i in range(3000)}
    half = {f"layer{i}": (i,) for i in range(1000, 4000)}
    known = Fingerprint.of("x", {}, one, [])
    assert known.likeness(sketch(one)) == 1
    assert known.likeness(sketch({"other": (1,)})) < 0.05
    assert known.likeness(sketch(half)) == pytest.approx(2000 / 4000, abs=0.2)  # 3 sigma


# What is recognised.


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("num_classes", [1, 7, 1000])
def test_each_family_with_any_number_of_classes(arch: str, num_classes: int) -> None:
    state_dict = state_of(arch, num_classes=num_classes)
    assert recognise(state_dict) == arch
    assert arguments_of(arch, state_dict)["num_classes"] == num_classes
    old = {k: v for k, v in reversed(state_dict.items()) if not k.endswith("num_batches_tracked")}
    assert recognise(old) == arch


@pytest.mark.slow
def test_every_architecture_is_recognised() -> None:
    for arch in names():
        assert recognise(state_of(arch)) == arch


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_so_are_those_without_auxiliary_heads(name: str) -> None:
    assert recognise(state_of(f"torchvision:{name}", aux_logits=False)) == f"torchvision:{name}"


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_so_is_a_small_cnn_of_any_width(width: int, in_channels: int) -> None:
    state_dict = SmallCNN(in_channels, 5, width).state_dict()
    assert recognise(state_dict) == "adaptkit:small_cnn"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_and_dtypes_do_not_count(dtype: torch.dtype) -> None:
    state_dict = {
        k: torch.full(v.shape, 3, dtype=dtype) for k, v in SmallCNN().state_dict().items()
    }
    assert recognise(state_dict) == "adaptkit:small_cnn"


def test_it_builds_nothing_and_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    state_dict = state_of("torchvision:efficientnet_v2_l")
    table()
    monkeypatch.setattr(torchvision.models, "get_model", None)
    start = time.process_time()
    assert recognise(state_dict) == "torchvision:efficientnet_v2_l"
    assert time.process_time() - start < 0.5  # 0.006


def test_the_random_state_is_left_alone() -> None:
    state_dict = state_of("torchvision:resnet18")
    del state_dict["fc.bias"]
    before = torch.random.get_rng_state()
    refused(state_dict)
    assert torch.equal(torch.random.get_rng_state(), before)


# What is near.


def test_a_key_that_is_missing() -> None:
    state_dict = state_of("torchvision:resnet50", num_classes=10)
    del state_dict["fc.bias"]
    assert refused(state_dict) == (
        "looks like torchvision:resnet50 with 10 classes; 1 key differs: missing fc.bias: rename "
        "its keys, or give --arch (arch=) if it is of another architecture"
    )


def test_a_head_of_another_name() -> None:
    state_dict = state_of("torchvision:resnet50")
    state_dict["head.weight"] = state_dict.pop("fc.weight")
    state_dict["head\n"] = state_dict.pop("fc.bias")
    assert refused(state_dict).startswith(
        "looks like torchvision:resnet50; 4 keys differ: missing fc.weight, fc.bias, "
        "unexpected head.weight, 'head\\n': "
    )


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "torchvision:densenet121"])
def test_other_input_channels(arch: str) -> None:
    state_dict = state_of(arch)
    key = next(iter(state_dict))
    state_dict[key] = torch.zeros(64, 1, 7, 7)
    assert refused(state_dict).startswith(
        f"looks like {arch} with 7 classes; 1 key differs: "
        f"of another shape {key} (64, 1, 7, 7) for (64, 3, 7, 7): "
    )


def test_heads_that_disagree() -> None:
    state_dict = state_of("torchvision:resnet18")
    state_dict["fc.weight"] = torch.zeros(9, 512)
    assert "1 key differs: of another shape fc." in refused(state_dict)


def test_an_input_of_another_size() -> None:
    message = refused(state_of("torchvision:vit_b_32", image_size=256))
    assert message.startswith("looks like torchvision:vit_b_32 with 7 classes; 1 key differs: ")
    assert "encoder.pos_embedding (1, 65, 768) for (1, 50, 768)" in message


def test_several_candidates_come_the_closest_first() -> None:
    state_dict = state_of("torchvision:vit_b_32")
    del state_dict["encoder.ln.bias"]
    message = refused(state_dict)
    assert message.startswith("looks like torchvision:vit_b_32 with 7 classes; 1 key differs: ")
    del state_dict["encoder.pos_embedding"]
    del state_dict["class_token"]
    message = refused(state_dict)
    assert message.startswith("looks like torchvision:vit_b_32 with 7 classes; 3 keys differ: ")
    assert ", or like torchvision:vit_b_16 with 7 classes; 4 keys differ: missing " in message


def test_other_widths_of_the_same_names() -> None:
    state_dict = state_of("torchvision:resnet50", width_per_group=32)
    message = refused(state_dict)
    assert message.startswith("looks like torchvision:resnext50_32x4d with 7 classes; 176 keys ")
    assert "of another shape layer1.0.conv1.weight (32, 64, 1, 1) for (128, 64, 1, 1), " in message


def test_a_small_cnn_that_is_none() -> None:
    state_dict = SmallCNN().state_dict()
    del state_dict["classifier.bias"]
    assert refused(state_dict).startswith(
        "looks like adaptkit:small_cnn with 10 classes; 1 key differs: missing classifier.bias: "
    )


# What is neither.


@pytest.mark.parametrize(
    "state_dict",
    [
        {},
        {"w": torch.zeros(2)},
        {"w": torch.tensor(1.0), "num_batches_tracked": torch.tensor(0)},
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)).state_dict(),
        {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)},
        {"\udc80" * 9: torch.zeros(2)},
        {"features.0.weight": torch.zeros(2**20, 1, 1, 1)},  # asks for a very wide small CNN
        {"features.0.weight": torch.zeros(2**26, 1, 1, 1, dtype=torch.bool)},
    ],
    ids=range(8),
)
def test_what_resembles_nothing(state_dict: dict[str, Tensor]) -> None:
    assert refused(state_dict) == (
        "resembles none of the known ones: give --arch (arch=), as in torchvision:resnet18"
    )


def test_a_prefix_is_not_guessed_away() -> None:
    state_dict = {f"net.{k}": v for k, v in state_of("torchvision:resnet18").items()}
    assert refused(state_dict).startswith("resembles none")


def test_hostile_state_dicts_take_neither_time_nor_memory() -> None:
    one = torch.zeros(1)
    start = time.process_time()
    assert "has more keys than any" in refused({f"layer{i}": one for i in range(1_000_000)})
    assert "resembles none" in refused({f"{'x' * 10_000}{i}\n": one for i in range(1000)})
    shapes: list[tuple[int, ...]] = [(10**12, 512), (0, 512)]
    for shape in shapes:
        state_dict = state_of("torchvision:resnet18")
        state_dict["fc.weight"] = one.new_zeros(()).expand(shape)
        assert f"one of repeated values, 'fc.weight' of shape {shape}" in refused(state_dict)
    shapes = [(10**9, 1, 3, 3), (10**12, 1, 0, 0)]
    for shape in shapes:
        state_dict = SmallCNN().state_dict()
        state_dict["features.0.weight"] = one.new_zeros(()).expand(shape)
        assert "an empty tensor or one of repeated values" in refused(state_dict)
    state_dict = {**SmallCNN().state_dict(), "x" * 10**6 + "\n": one}
    assert len(refused(state_dict)) < 500
    assert time.process_time() - start < 20


# From files.


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "torchvision:mnasnet0_5", "ibn:resnet18_ibn_b"]
)
def test_a_file_needs_no_name(tmp_path: Path, name: str, prefix: str, wrapped: bool) -> None:
    model = adaptkit.architectures.build(name, {"num_classes": 7})
    state_dict = {f"{prefix}{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state_dict} if wrapped else state_dict, tmp_path / "x.pt")
    found = load_checkpoint(tmp_path / "x.pt")
    assert (found.arch, found.recognised) == (name, True)
    assert found.arch_kwargs == {"num_classes": 7}
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.model(images), model(images))
    named = load_checkpoint(tmp_path / "x.pt", arch=name)
    assert (named.recognised, named.transform) == (False, found.transform)
    out = save_checkpoint(tmp_path / "out.pt", found.model, like=found)
    assert (load_checkpoint(out).arch, load_checkpoint(out).recognised) == (name, True)


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("densenet121", [(".norm1.", ".norm.1."), (".conv2.", ".conv.2.")]),
        pytest.param(
            "vit_b_32",
            [("mlp.0.", "mlp.linear_1."), ("mlp.3.", "mlp.linear_2.")],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_names_that_published_weights_have(
    tmp_path: Path, name: str, former: list[tuple[str, str]]
) -> None:
    """Their files are older than the modules' names."""
    model = adaptkit.architectures.build(f"torchvision:{name}", {"num_classes": 7})
    state_dict = model.state_dict()
    for now, then in former:
        state_dict = {k.replace(now, then): v for k, v in state_dict.items()}
    assert state_dict.keys() != model.state_dict().keys()
    torch.save(state_dict, tmp_path / "x.pt")
    found = load_checkpoint(tmp_path / "x.pt")
    assert found.arch == f"torchvision:{name}"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in found.model.state_dict().items())
    out = save_checkpoint(tmp_path / "out.pt", found.model, like=found)
    assert torch.load(out, weights_only=True).keys() == state_dict.keys()


def test_a_file_of_torch_0_3_needs_no_name(tmp_path: Path) -> None:
    """InstanceNorm stored statistics then, and no layer counted batches."""
    model = IBN_NETS["resnet18_ibn_a"](num_classes=7)
    state_dict = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.InstanceNorm2d):
            for key in ("running_mean", "running_var"):
                state_dict[f"{name}.{key}"] = torch.zeros(layer.num_features)
    torch.save(state_dict, tmp_path / "x.pt")
    assert load_checkpoint(tmp_path / "x.pt").arch == "ibn:resnet18_ibn_a"


def test_what_a_file_says_counts_more(tmp_path: Path) -> None:
    net = SmallCNN(num_classes=3)
    save_checkpoint(tmp_path / "x.pt", net, arch="adaptkit:small_cnn")
    assert not load_checkpoint(tmp_path / "x.pt").recognised


def test_an_error_names_the_file(tmp_path: Path) -> None:
    state_dict = SmallCNN().state_dict()
    del state_dict["classifier.bias"]
    torch.save(state_dict, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert str(caught.value).startswith(
        f"{tmp_path / 'x.pt'} does not say which architecture it is of, and looks like adaptkit:"
    )


def test_measuring_a_shift_says_what_was_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = adaptkit.architectures.build("torchvision:shufflenet_v2_x0_5", {"num_classes": 2})
    torch.save(model.state_dict(), "x.pt")
    Path("images").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 40, 20)).save(f"images/{i}.png")
    run = shift_folders("x.pt", "images", device="cpu")
    assert run.notes[0] == "recognised torchvision:shufflenet_v2_x0_5, 2 classes."
    named = shift_folders(
        "x.pt", "images", device="cpu", arch="torchvision:shufflenet_v2_x0_5", force=True
    )
    assert not [note for note in named.notes if "recognised" in note]
