"""load_checkpoint() and save_checkpoint(): what goes in comes back, and nothing in a file runs."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from adaptkit import (
    CheckpointError,
    OutputError,
    Transform,
    adapt,
    load_checkpoint,
    save_checkpoint,
)
from adaptkit.models import SmallCNN

GREY = Transform(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def net() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(num_classes=3, width=4).eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: SmallCNN) -> Path:
    """A folder with net.pt and net.safetensors."""
    monkeypatch.chdir(tmp_path)
    for suffix in ("pt", "safetensors"):
        save(net, f"net.{suffix}")
    return tmp_path


def save(net: nn.Module, path: str, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "arch": "adaptkit:small_cnn",
        "arch_kwargs": {"num_classes": 3, "width": 4},
        "classes": ["a", "b", "ç"],
        "transform": GREY,
        **changes,
    }
    return save_checkpoint(path, net, **options)


def fails(path: str, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


# There and back.


@pytest.mark.parametrize("path", ["net.pt", "net.safetensors"])
def test_what_was_saved_is_loaded(here: Path, net: SmallCNN, path: str) -> None:
    found = load_checkpoint(path)
    assert (found.arch, found.classes, found.transform) == (
        "adaptkit:small_cnn",
        ("a", "b", "ç"),
        GREY,
    )
    assert found.adapted is None
    assert not found.model.training
    assert torch.equal(found.model(X), net(X))
    assert found.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_format_is_the_documented_one(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    assert set(content) == {"format", "arch", "arch_kwargs", "classes", "transform", "state_dict"}
    assert content["format"] == "adaptkit/1"
    with safe_open("net.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["adaptkit"])
    del content["state_dict"]
    assert header == content


@pytest.mark.parametrize("source", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("out", ["out.pt", "out.pth", "out.safetensors"])
def test_an_adapted_file_differs_in_its_statistics_only(here: Path, source: str, out: str) -> None:
    read = load_checkpoint(source)
    adapted = adapt(read.model, [X])
    record = {"source": source, "sha256": read.sha256, "samples": 16, "method": "adabn"}
    save_checkpoint(out, adapted, like=read, adapted=record)
    found = load_checkpoint(out)
    assert found.adapted == record
    assert (found.classes, found.transform, found.arch) == (read.classes, GREY, read.arch)
    assert list(found.state_dict) == list(read.state_dict) or out.endswith("safetensors")
    for key, value in read.state_dict.items():
        assert found.state_dict[key].dtype == value.dtype
        assert torch.equal(found.state_dict[key], value) == ("running" not in key), key
    assert torch.equal(found.model(X), adapted(X))


def test_a_plain_state_dict_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = tmp_path / "plain.pth"
    torch.save(resnet18(num_classes=7).state_dict(), source)
    read = load_checkpoint(source, arch="torchvision:resnet18")
    assert read.model.fc.out_features == 7  # type: ignore[union-attr]
    assert read.transform is not None
    assert read.transform.image_size == (224, 224)
    adapted = adapt(read.model, [torch.randn(4, 3, 32, 32)])
    out = save_checkpoint(tmp_path / "out.pth", adapted, like=read, adapted={"samples": 4})
    theirs = torch.load(out, weights_only=True)
    assert type(theirs) is OrderedDict
    resnet18(num_classes=7).load_state_dict(theirs, strict=True)
    assert theirs._metadata["bn1"] == {"version": 2}  # type: ignore[attr-defined]
    again = load_checkpoint(out, arch="torchvision:resnet18")
    assert again.adapted == {"samples": 4}
    assert load_checkpoint(source, arch="torchvision:resnet18").adapted is None


def test_a_plain_safetensors_keeps_its_own_metadata(tmp_path: Path) -> None:
    state = resnet18(num_classes=5).state_dict()
    save_file(state, tmp_path / "plain.safetensors", {"format": "pt", "licence": "MIT"})
    read = load_checkpoint(tmp_path / "plain.safetensors", arch="torchvision:resnet18")
    out = save_checkpoint(tmp_path / "out.safetensors", read.model, like=read)
    assert all(torch.equal(v, state[k]) for k, v in load_file(out).items())
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["licence"] == "MIT"
    again = load_checkpoint(out, arch="torchvision:resnet18")
    assert again.adapted is not None
    assert again.adapted["source"] == "plain.safetensors"


def test_half_precision_and_missing_counters_stay_as_they_are(here: Path, net: SmallCNN) -> None:
    content = torch.load("net.pt", weights_only=True)
    content["state_dict"] = {
        k: v.half() if v.is_floating_point() else v
        for k, v in content["state_dict"].items()
        if not k.endswith("num_batches_tracked")
    }
    torch.save(content, "half.pt")
    read = load_checkpoint("half.pt")
    assert next(read.model.parameters()).dtype == torch.float32
    save_checkpoint("out.pt", adapt(read.model, [X]), like=read)
    found = torch.load("out.pt", weights_only=True)["state_dict"]
    assert list(found) == list(content["state_dict"])
    assert {v.dtype for v in found.values()} == {torch.float16}
    same = [k for k in found if torch.equal(found[k], content["state_dict"][k])]
    assert same == [k for k in found if "running" not in k]


def test_values_beyond_the_stored_dtype_are_not_written_as_infinity(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(content, "half.pt")
    read = load_checkpoint("half.pt")
    read.model.features[1].running_var.fill_(1e6)  # type: ignore[index,union-attr]
    with pytest.raises(CheckpointError, match=r"'features\.1\.running_var'.*too large .*float16"):
        save_checkpoint("out.pt", read.model, like=read)
    assert not Path("out.pt").exists()


@pytest.mark.parametrize("out", ["out.pt", "out.safetensors"])
def test_a_record_comes_back_as_json_would_give_it(here: Path, out: str) -> None:
    read = load_checkpoint("net.pt")
    record = {"layers": ("a", "b"), "share": np.float64(0.5)}
    save_checkpoint(out, read.model, like=read, adapted=record)
    assert load_checkpoint(out).adapted == {"layers": ["a", "b"], "share": 0.5}
    for bad in ({"path": Path("x")}, {"values": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="expected adapted to be what JSON can hold"):
            save_checkpoint(f"bad-{out}", read.model, like=read, adapted=bad)
    assert not Path(f"bad-{out}").exists()


def test_arguments_that_only_this_process_could_read_are_refused(here: Path) -> None:
    net = resnet18(norm_layer=nn.BatchNorm2d)
    with pytest.raises(CheckpointError, match="expected arch_kwargs to be what JSON can hold"):
        save_checkpoint(
            "x.pt", net, arch="torchvision:resnet18", arch_kwargs={"norm_layer": nn.BatchNorm2d}
        )


def test_what_safetensors_cannot_hold_is_refused(here: Path) -> None:
    torch.save({**torch.load("net.pt", weights_only=True), "ema": torch.zeros(2)}, "more.pt")
    read = load_checkpoint("more.pt")
    with pytest.raises(OutputError, match=r"holds only JSON \(.*\): choose a name ending in \.pt"):
        save_checkpoint("x.safetensors", read.model, like=read)
    assert not Path("x.safetensors").exists()


def test_versions_inside_a_native_file_survive(here: Path, net: SmallCNN) -> None:
    content = {**torch.load("net.pt", weights_only=True), "state_dict": net.state_dict()}
    torch.save(content, "versions.pt")
    read = load_checkpoint("versions.pt")
    save_checkpoint("out.pt", read.model, like=read)
    found = torch.load("out.pt", weights_only=True)["state_dict"]
    assert found._metadata == net.state_dict()._metadata  # type: ignore[attr-defined]


def test_nan_among_the_weights_keeps_its_bits(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    weight = content["state_dict"]["features.0.weight"].half()
    weight.view(torch.int16)[0, 0, 0, 0] = 0x7D01  # a signalling NaN with a payload
    content["state_dict"]["features.0.weight"] = weight
    torch.save(content, "nan.pt")
    read = load_checkpoint("nan.pt")
    save_checkpoint("out.pt", read.model, like=read)
    found = torch.load("out.pt", weights_only=True)["state_dict"]["features.0.weight"]
    assert torch.equal(found.view(torch.int16), weight.view(torch.int16))


def test_a_small_cnn_needs_no_arguments(here: Path, net: SmallCNN) -> None:
    torch.save(net.state_dict(), "plain.pt")
    assert torch.equal(load_checkpoint("plain.pt", arch="adaptkit:small_cnn").model(X), net(X))


def test_fields_that_are_not_ours_survive(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    torch.save({**content, "epoch": 12}, "more.pt")
    read = load_checkpoint("more.pt")
    save_checkpoint("out.pt", read.model, like=read)
    assert torch.load("out.pt", weights_only=True)["epoch"] == 12


def test_what_training_wrote_comes_back_in_its_form(here: Path, net: SmallCNN) -> None:
    """A dict around the state dict, as training scripts write it, with DataParallel's prefix."""
    beside = {"epoch": 9, "arch": "resnet50", "classes": 3, "optimizer": {"buf": torch.ones(2)}}
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({**beside, "state_dict": state}, "trained.tar")
    read = load_checkpoint("trained.tar")
    assert (read.arch, read.recognised) == ("adaptkit:small_cnn", True)  # "arch" is another's name
    assert torch.equal(read.model(X), net(X))
    assert (read.classes, read.adapted) == (None, None)
    save_checkpoint("out.pt", adapt(read.model, [X]), like=read, adapted={"samples": 16})
    found = torch.load("out.pt", weights_only=True)
    assert torch.equal(found.pop("optimizer")["buf"], torch.ones(2))
    assert list(found.pop("state_dict")) == list(state)
    assert found == {"epoch": 9, "arch": "resnet50", "classes": 3, "adaptkit": {"samples": 16}}
    assert load_checkpoint("out.pt", arch="adaptkit:small_cnn").adapted == {"samples": 16}
    with pytest.raises(OutputError, match=r"holds only JSON \(.*\): choose a name ending in \.pt"):
        save_checkpoint("out.safetensors", read.model, like=read)


def test_what_training_wrote_goes_through_safetensors(here: Path, net: SmallCNN) -> None:
    torch.save({"epoch": 9, "state_dict": net.state_dict()}, "trained.pt")
    first = load_checkpoint("trained.pt", arch="adaptkit:small_cnn")
    save_checkpoint("one.safetensors", first.model, like=first)
    second = load_checkpoint("one.safetensors", arch="adaptkit:small_cnn")
    save_checkpoint("two.pt", second.model, like=second)
    found = torch.load("two.pt", weights_only=True)
    assert found["epoch"] == 9
    assert found["state_dict"].keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
        "densenet121",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "squeezenet1_0",
    ],
)
def test_the_class_count_comes_from_the_file(tmp_path: Path, name: str) -> None:
    from adaptkit.architectures import build

    torch.save(build(f"torchvision:{name}", {"num_classes": 4}).state_dict(), tmp_path / "x.pth")
    model = load_checkpoint(tmp_path / "x.pth", arch=f"torchvision:{name}").model
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


# What saving refuses.


def test_saving_refuses(here: Path, net: SmallCNN) -> None:
    with pytest.raises(OutputError, match=r"net\.pt exists already"):
        save(net, "net.pt")
    save(net, "net.pt", force=True)
    read = load_checkpoint("net.pt")
    with pytest.raises(OutputError, match="is also the input"):
        save_checkpoint("net.pt", net, like=read, force=True)
    with pytest.raises(OutputError, match=r"ending in \.pt, \.pth, .*\.safetensors"):
        save(net, "net.onnx")
    with pytest.raises(CheckpointError, match="give arch= or like="):
        save_checkpoint("x.pt", net)
    with pytest.raises(CheckpointError, match=r"does not fit adaptkit:small_cnn: .*another shape"):
        save(net, "x.pt", arch_kwargs={"num_classes": 9, "width": 4})
    with pytest.raises(CheckpointError, match=r"not of net\.pt's form: 'features\.0\.weight'"):
        save_checkpoint("x.pt", SmallCNN(), like=read)
    assert not Path("x.pt").exists()


# What loading refuses.


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [Evil(), {"state_dict": Evil()}, [Evil()]])
@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_never_runs(here: Path, content: Any, write: Any) -> None:
    write(content, here / "evil.pt")
    fails(
        "evil.pt",
        r"evil\.pt would run code \((posix|nt)\.system\), as no model needs to: do not open it",
    )
    assert not Path("executed").exists()


def test_a_whole_pickled_model_says_how_to_save_it(here: Path, net: SmallCNN) -> None:
    torch.save(net, "whole.pt")
    fails(
        "whole.pt",
        r"SmallCNN\), and .*: with what wrote it, .*save\(model\.state_dict\(\), 'whole-w",
    )


def test_torchscript_says_how_to_save_it(here: Path, net: SmallCNN) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, as is why it is refused
        torch.jit.save(torch.jit.script(net), "script.pt")
    fails(
        "script.pt",
        r"is a TorchScript program, .*export\.export\(.*load\('script\.pt'\)\.state_dict\(\)",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"# Title\n",
        b"<html>",
        b"name,label\n1,2\n",
        b"\x89PNG\r\n",
        b"import torch\n",
        b"version 1",
    ],
)
def test_other_files_are_not_accused_of_running_code(here: Path, content: bytes) -> None:
    Path("x.pt").write_bytes(content * 9)
    fails("x.pt", r"^x\.pt is broken or not a checkpoint: ")


def test_a_file_that_may_not_be_read(here: Path) -> None:
    Path("closed").mkdir()
    Path("net.pt").rename("closed/net.pt")
    Path("closed").chmod(0)
    before = os.geteuid()
    if before == 0:  # to whom permissions do not apply
        here.chmod(0o755)
        os.seteuid(65534)
    try:
        fails("closed/net.pt", r"cannot read closed/net\.pt: Permission denied")
    finally:
        os.seteuid(before)
        Path("closed").chmod(0o700)
    fails("x" * 300, "cannot read x+: File name too long")


def test_files_that_are_no_checkpoints(here: Path) -> None:
    fails("missing.pt", r"there is no checkpoint missing\.pt")
    fails(
        "https://me:secret@host/net.pt?token=1",
        r"^[^:]*, got a URL \(https\): download it first[^:]*$",
    )
    Path("folder.pt").mkdir()
    fails("folder.pt", "is not a file")
    os.mkfifo("pipe.pt")
    fails("pipe.pt", "is not a file")
    for name, content in {
        "empty.pt": b"",
        "text.pt": b"hello, these are no weights\n" * 9,
        "text.safetensors": b"hello, these are no weights\n",
        "json.safetensors": b"\x20\0\0\0\0\0\0\0{not json at all, in any way   }",
        "huge.safetensors": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    }.items():
        Path(name).write_bytes(content)
        fails(name, r"is empty" if not content else "is broken or not a checkpoint")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "an empty state dict"),
        ({"epoch": 3, "net": {}}, r"neither of format adaptkit/1 nor .*its keys: epoch, net"),
        ({"w": torch.zeros(2), "lr": 0.1}, "nor a plain state dict of tensors"),
        ({1: torch.zeros(2)}, "nor a plain state dict"),
        ({"a\nb": 1}, r"its keys: 'a\\nb'"),
        ({"w": torch.zeros(2)}, "does not say which architecture.*resembles none .*--arch"),
        ({"w": torch.zeros(2).to_sparse()}, "'w' is a sparse, quantised or complex tensor"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "'w' is a sparse, quantised or complex"),
        ({"format": "adaptkit/2", "weights": {}}, r"of format adaptkit/2, .* install a newer"),
        ({"format": "adaptkit/1", "arch": "x"}, "expected a field 'state_dict', got format, arch"),
    ],
)
def test_contents_that_are_no_checkpoints(here: Path, content: Any, message: str) -> None:
    torch.save(content, "x.pt")
    fails("x.pt", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "adaptkit/2"}, r"of format adaptkit/2, and this.* install a newer"),
        ({"format": "adaptkit/x"}, "unknown format 'adaptkit/x'; expected adaptkit/1"),
        (
            {"arch": None, "state_dict": {"w": torch.zeros(2)}},
            "does not say which architecture.*resembles none .*--arch",
        ),
        ({"arch": 3}, "expected 'arch' to be a str, got int"),
        ({"arch": "adaptkit:small_cn"}, r"unknown architecture.*did you mean adaptkit:small_cnn\?"),
        ({"arch": "timmy:x"}, r"timmy:x, whose code runs only if you name it"),
        ({"arch": "torchvision:resnet81"}, "did you mean torchvision:resnet"),
        ({"arch_kwargs": {1: 2}}, "expected the keys of 'arch_kwargs' to be names"),
        ({"arch_kwargs": [1]}, "expected 'arch_kwargs' to be a dict"),
        ({"arch_kwargs": {"depth": 3}}, "does not take {.*'depth': 3}"),
        ({"classes": "abc"}, "expected 'classes' to be a list"),
        ({"classes": [1, 2]}, "'classes' to be a list of names"),
        ({"transform": {"image_size": [0, 0]}}, r"x\.pt: transform: sizes must be"),
        ({"transform": {"image_size": [8, 8], 1: 2, "x": 3}}, r"x\.pt: "),
        ({"state_dict": {}}, "an empty state dict"),
        ({"state_dict": [1]}, "holds a list"),
    ],
)
def test_malformed_fields_are_named(here: Path, changes: dict[str, Any], message: str) -> None:
    torch.save({**torch.load("net.pt", weights_only=True), **changes}, "x.pt")
    fails("x.pt", message)


def test_others_have_a_field_called_format_too(here: Path, net: SmallCNN) -> None:
    for name in ("pt", 3, torch.zeros(2)):
        torch.save({"format": name, "state_dict": net.state_dict()}, "x.pt")
        assert load_checkpoint("x.pt").recognised


def test_keys_that_do_not_fit_are_named_with_their_number(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    state: dict[str, Tensor] = content["state_dict"]
    moved = {k.replace("classifier", "head"): v for k, v in state.items()}
    moved["features.0.weight"] = torch.zeros(1, 2)
    torch.save({**content, "state_dict": moved}, "x.pt")
    fails(
        "x.pt",
        r"2 missing \(classifier\.weight, classifier\.bias\); "
        r"2 unexpected \(head\.weight, head\.bias\); "
        r"1 of another shape \(features\.0\.weight \(1, 2\) for \(4, 1, 3, 3\)\)",
    )
    torch.save({"a": state["features.0.weight"]}, "x.pt")
    fails("x.pt", r"22 missing \(\S+, \S+, \S+, \.\.\.\)", arch="adaptkit:small_cnn")


@pytest.mark.parametrize(
    ("buffer", "value", "message"),
    [
        ("running_mean", torch.nan, "NaN or infinity"),
        ("running_var", torch.inf, "NaN or infinity"),
        ("running_var", -1.0, "a negative variance"),
    ],
)
def test_bad_statistics_name_their_layer(
    here: Path, buffer: str, value: float, message: str
) -> None:
    content = torch.load("net.pt", weights_only=True)
    content["state_dict"][f"features.4.{buffer}"][1] = value
    torch.save(content, "x.pt")
    fails("x.pt", rf"norm layer 'features\.4' hold {message}")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_damage_never_ends_in_anything_but_a_clear_error(here: Path, name: str) -> None:
    content = Path(name).read_bytes()
    rng = random.Random(0)
    damaged = [content[: rng.randrange(len(content))] for _ in range(30)]
    for _ in range(90):
        where, bit = rng.randrange(min(len(content), 4000)), 1 << rng.randrange(8)
        damaged.append(content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :])
    for number, sample in enumerate(damaged):
        path = Path(f"damaged{number}").with_suffix(Path(name).suffix)
        path.write_bytes(sample)
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path)


def test_the_fuzz_would_notice(here: Path) -> None:
    """Loading as others do it does raise other things on the same damage."""
    content = Path("net.pt").read_bytes()
    with pytest.raises(RuntimeError):
        torch.load(io.BytesIO(content[:100]), weights_only=True)


def test_the_shapes_say_what_the_arguments_do_not(here: Path) -> None:
    state = torch.load("net.pt", weights_only=True)["state_dict"]
    torch.save(state, "plain.pt")
    found = load_checkpoint("plain.pt", arch="adaptkit:small_cnn")
    assert found.model(X).shape == (16, 3)


def test_records_that_no_file_can_hold_are_refused(here: Path, net: SmallCNN) -> None:
    read = load_checkpoint("net.pt")
    with pytest.raises(CheckpointError, match="expected adapted to be what JSON can hold"):
        save_checkpoint("x.pt", net, like=read, adapted={"when": object()})
    assert not Path("x.pt").exists()


def test_values_too_large_for_the_stored_dtype_are_refused(here: Path) -> None:
    content = torch.load("net.pt", weights_only=True)
    content["state_dict"] = {
        k: v.half() if v.is_floating_point() else v for k, v in content["state_dict"].items()
    }
    torch.save(content, "half.pt")
    read = load_checkpoint("half.pt")
    read.model.get_submodule("features.1").running_var.fill_(1e6)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"too large for the torch\.float16"):
        save_checkpoint("x.pt", read.model, like=read)
