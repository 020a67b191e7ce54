"""Broken and hostile checkpoints: one line, in bounded time and memory, nothing run or written."""

import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from adaptkit import CheckpointError, load_checkpoint
from adaptkit.models import SmallCNN
from cli import main

ROOT = Path(__file__).parent.parent
MIB = 2**20


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which nothing may appear but what a test puts there."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("executed*")), "code in a file ran"


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(SmallCNN(num_classes=3, width=4).state_dict())


def refused(path: str, message: str = "", **options: Any) -> str:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, **options)
    assert caught.value.__cause__ is None
    assert time.process_time() - start < 10
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1200
    return text


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def records_of(content: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# Damage.


@pytest.mark.parametrize(
    "name", ["x.pt", "legacy.pt", "x.safetensors", "x.safetensors.index.json", "wrapped.ckpt"]
)
def test_damage_ends_in_one_line_or_in_a_model_of_finite_statistics(name: str) -> None:
    torch.save(state(), "x.pt")
    torch.save(state(), "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": {f"module.{k}": v for k, v in state().items()}, "n": 1}, "wrapped.ckpt")
    save_file(state(), "x.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state(), "x.safetensors")}
    Path("x.safetensors.index.json").write_text(json.dumps(index))
    content = Path(name).read_bytes()
    rng = random.Random(0)
    whole = len(content)
    cuts = {0, 1, 4, 8, 9, 30, 64, whole // 2, whole - 1, whole - 22, whole - 64}
    damaged = [content[:n] for n in sorted(cuts | {rng.randrange(whole) for _ in range(12)})]
    for _ in range(60):
        where, bit = rng.randrange(min(whole, 4000)), 1 << rng.randrange(8)
        damaged.append(content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :])
    opened = 0
    for sample in damaged:
        path = Path(f"damaged{name[name.index('.') :]}")
        path.write_bytes(sample)
        with suppress(CheckpointError):
            load_checkpoint(path)
            opened += 1
    assert opened < len(damaged)


# Code.


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, exec, eval, subprocess.call])
def test_pickles_that_call_run_nothing(protocol: int, function: Any) -> None:
    evil = Calls(function, "import os; os.system('touch executed')")
    Path("x.pt").write_bytes(pickle.dumps({"state_dict": evil}, protocol))
    refused(
        "x.pt", r"^x\.pt (would run code \(\S+\), as no model needs to|holds more than tensors)"
    )
    records = records_of({"w": torch.zeros(1)})
    records["archive/data.pkl"] = pickle.dumps({"state_dict": evil}, protocol)
    Path("y.pt").write_bytes(zipped(records))
    refused(
        "y.pt", r"^y\.pt (would run code \(\S+\), as no model needs to|holds more than tensors)"
    )


def test_code_beside_the_weights_is_found() -> None:
    torch.save({"state_dict": state(), "extra": Calls(os.system, "touch executed")}, "x.pt")
    refused("x.pt", r"would run code \(posix\.system\)")
    torch.save({"state_dict": state(), "net": SmallCNN()}, "x.pt")
    text = refused("x.pt", r"holds more than tensors \(adaptkit\.models\.small_cnn\.SmallCNN\)")
    assert "model = torch.load('x.pt', weights_only=False)" in text
    assert "torch.save(model.state_dict(), 'x-weights.pt')" in text


def test_a_file_cannot_name_code_of_its_users(here: Path) -> None:
    (here / "nets.py").write_text("open('executed', 'w')\n")
    for arch in ("nets.py:make", "nets:make", "os:system", "subprocess:call"):
        torch.save({"format": "adaptkit/1", "arch": arch, "state_dict": state()}, "x.pt")
        refused("x.pt", rf"architecture {arch}, whose code runs only if you name it: give --arch")


def test_values_that_numpy_would_be_asked_for() -> None:
    """A numpy number is read by functions of ours, for which it has to be a number."""
    import numpy as np

    class Evil:
        def __reduce__(self) -> Any:
            return np.float64(0).__reduce__()[0], (np.dtype("O"), b"12345678")

    for content in ({"model": state(), "x": np.float64(1)}, {"model": state(), "x": np.int8(1)}):
        torch.save(content, "x.pt")
        assert load_checkpoint("x.pt").arch == "adaptkit:small_cnn"
    for bad in (Evil(), np.datetime64(1, "s"), np.zeros(3), np.complex64(1), np.str_("x")):
        torch.save({"model": state(), "x": bad}, "x.pt")
        refused("x.pt", "is broken or not a checkpoint|holds more than tensors")


# Bombs.


def test_compressed_records_are_refused_before_they_are_read() -> None:
    records = records_of({"w": torch.zeros(1)})
    records["archive/data/0"] = bytes(50 * MIB)
    Path("x.pt").write_bytes(zipped(records, zipfile.ZIP_DEFLATED))
    refused("x.pt", "its records are compressed or overlap")


def test_records_that_overlap_are_refused() -> None:
    content = bytearray(zipped({"a/data.pkl": b"x" * 100, "a/data/0": b"y" * 100}))
    end = content.rfind(b"PK\x05\x06")
    start = struct.unpack("<I", content[end + 16 : end + 20])[0]
    directory = bytes(content[start:end])
    count = len(directory) // 2
    more = directory + directory[:count] * 3
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 5, 5, len(more), start, 0)
    Path("x.pt").write_bytes(bytes(content[:start]) + more + tail)
    refused("x.pt", "its records are compressed or overlap|broken or not a checkpoint")


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (bytearray, (2**40,)),
        (torch.FloatTensor, (2**20, 2**20)),
        (torch.Tensor, (2**20, 2**20)),
    ],
)
def test_what_would_allocate_by_a_number_is_refused(function: Any, args: tuple[int, ...]) -> None:
    torch.save({"state_dict": state(), "x": Calls(function, *args)}, "x.pt")
    refused("x.pt", r"holds more than tensors \((builtins|__builtin__|torch)\.\w+\)")


def test_shapes_larger_than_the_file() -> None:
    wide = torch.zeros(1).expand(10**9, 4)
    torch.save({**state(), "classifier.weight": wide}, "x.pt")
    refused("x.pt", r"holds repeated values, more than the file has bytes")
    refused("x.pt", "holds repeated values", arch="adaptkit:small_cnn")
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    Path("x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    refused("x.safetensors", "is broken or not a checkpoint")
    torch.save({"w": torch.zeros(3, device="meta")}, "x.pt")
    refused("x.pt", r"'w' has no values: it was saved on 'meta'")


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("adaptkit:small_cnn", {"width": 40_000}),
        ("torchvision:resnet18", {"num_classes": 10**7}),
        ("torchvision:mobilenet_v2", {"inverted_residual_setting": [[1, 16, 20_000, 1]]}),
        ("timm:vit_tiny_patch16_224", {"depth": 10**6}),
    ],
)
def test_arguments_in_a_file_ask_for_no_more_than_it_holds(
    arch: str, arguments: dict[str, Any]
) -> None:
    content = {"format": "adaptkit/1", "arch": arch, "arch_kwargs": arguments}
    torch.save({**content, "state_dict": state()}, "x.pt")
    refused("x.pt", "beyond what its 26 tensors can be of|they ask for [0-9,]+ numbers, and it ho")


@pytest.mark.parametrize(
    "transform",
    [
        {"image_size": [10**7, 10**7]},
        {"image_size": [8, 8], "mean": [10**400] * 3},
        {"image_size": [8, 8], "resize": "crop", "resize_size": 10**9},
    ],
)
def test_transforms_that_no_memory_holds(transform: dict[str, Any]) -> None:
    content = {"format": "adaptkit/1", "arch": "adaptkit:small_cnn", "transform": transform}
    torch.save({**content, "state_dict": state()}, "x.pt")
    refused("x.pt", r"^x\.pt: ")


@pytest.mark.slow
def test_memory_stays_bounded() -> None:
    """Each of the bombs, in a process that may not grow by more than a few hundred MiB."""
    records = records_of({"w": torch.zeros(1)})
    records["archive/data/0"] = bytes(400 * MIB)
    Path("zip.pt").write_bytes(zipped(records, zipfile.ZIP_DEFLATED))
    torch.save({"state_dict": state(), "x": Calls(bytearray, 2**33)}, "call.pt")
    torch.save({**state(), "classifier.weight": torch.zeros(1).expand(10**9, 4)}, "wide.pt")
    torch.save({str(i): torch.zeros(1) for i in range(1000)}, "many.pt")
    code = (
        "import resource, sys\n"
        "from adaptkit import AdaptkitError, load_checkpoint\n"
        "import torch\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "for name in sys.argv[1:]:\n"
        "    for arch in (None, 'adaptkit:small_cnn'):\n"
        "        try: load_checkpoint(name, arch=arch)\n"
        "        except AdaptkitError as error: print(error)\n"
        "        else: raise SystemExit('opened ' + name)\n"
        "assert peak() - before < 200, peak() - before\n"
    )
    command = [sys.executable, "-c", code, "zip.pt", "call.pt", "wide.pt", "many.pt"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 8
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * MIB


def test_dicts_within_dicts_without_end() -> None:
    tree: dict[str, Any] = {}
    tree["model"] = tree
    torch.save(tree, "x.pt")
    refused("x.pt", "neither of format adaptkit/1 nor a plain state dict")
    tree = {}
    for _ in range(400):
        tree = {"model": tree, "net": tree}
    Path("x.pt").write_bytes(zipped(records_of(tree)))
    refused("x.pt", "neither of format adaptkit/1 nor a plain state dict|broken")


# Names and places.


@pytest.mark.parametrize(
    "name", ["../executed", "/executed-by-zip", "archive/../../executed", "archive\\executed"]
)
def test_names_in_an_archive_lead_nowhere(name: str) -> None:
    records = {**records_of(state()), name: b"content"}
    Path("x.pt").write_bytes(zipped(records))
    with suppress(CheckpointError):  # some are refused by torch; nothing is ever unpacked
        load_checkpoint("x.pt")
    assert not Path("/executed-by-zip").exists()
    assert list(Path().iterdir()) == [Path("x.pt")]


def test_links_and_pipes() -> None:
    torch.save(state(), "x.pt")
    Path("good.pt").symlink_to("x.pt")
    assert load_checkpoint("good.pt").arch == "adaptkit:small_cnn"
    Path("nowhere.pt").symlink_to("missing.pt")
    refused("nowhere.pt", r"nowhere\.pt leads nowhere: it is a link")
    Path("circle.pt").symlink_to("circle.pt")
    refused("circle.pt", r"circle\.pt")
    os.mkfifo("pipe")
    for name in ("pipe.pt", "pipe.safetensors"):
        Path(name).symlink_to("pipe")
        refused(name, "is not a file")
    Path("device.pt").symlink_to("/dev/zero")
    refused("device.pt", "is not a file")
    index = {"weight_map": {"w": "pipe.safetensors"}}
    Path("x.safetensors.index.json").write_text(json.dumps(index))
    refused("x.safetensors.index.json", r"pipe\.safetensors is not a file")
    refused("a\0b.pt", "cannot read|there is no checkpoint")


def test_files_larger_than_the_memory() -> None:
    with Path("x.pt").open("wb") as file:  # sparse: it takes no room
        file.truncate(2**42)
    refused("x.pt", r"x\.pt of 4,096 GiB is larger than the memory of this machine")


# Values.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_statistics_that_cannot_be(value: float, write: Any) -> None:
    bad = {**state(), "features.4.running_var": torch.full((4,), value)}
    write(bad, "x")
    refused("x", r"norm layer 'features\.4' hold (NaN or infinity|a negative variance)")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
def test_weights_of_a_dtype_that_no_weights_have(dtype: torch.dtype) -> None:
    torch.save({**state(), "features.0.weight": torch.ones(4, 1, 3, 3).to(dtype)}, "x.pt")
    refused("x.pt", rf"'features\.0\.weight' is of {dtype}, expected ")


def test_sparse_and_quantised_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in files
        quantised = torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8)
        torch.save({"w": quantised}, "quantised.pt")
    for bad in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        torch.save({"w": bad}, "x.pt")
        refused("x.pt", "is a sparse, quantised or complex tensor")
    refused("quantised.pt", r"holds more than tensors \(torch\._utils\._rebuild_qtensor\)")


# At the command.


def test_the_command_says_one_line_and_writes_nothing() -> None:
    torch.save({"state_dict": state(), "extra": Calls(os.system, "touch executed")}, "evil.pt")
    torch.save(OrderedDict(a=torch.zeros(1)), "other.pt")
    Path("empty.pt").touch()
    Path("images").mkdir()
    before = sorted(Path().iterdir())
    for command in (
        ["adapt", "--target", "images", "--source"],
        ["shift", "--target", "images", "--model"],
        ["apply", "--stats", "x", "--out", "y.pt", "--source"],
        ["inspect"],
    ):
        for name in ("evil.pt", "other.pt", "empty.pt", "missing.pt", "images"):
            run = CliRunner().invoke(main, [*command, name])
            assert run.exit_code != 0
            assert run.output.startswith("Error: "), run.output
            assert len(run.output.splitlines()) == 1
    assert sorted(Path().iterdir()) == before
