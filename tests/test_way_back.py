"""Whatever kind of file comes in goes out: only the re-estimated tensors differ, byte by byte."""

import argparse
import contextlib
import io
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptkit import CheckpointError, OutputError, adapt, load_checkpoint, save_checkpoint
from adaptkit.models import SmallCNN

X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def net() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(num_classes=3, width=4).eval()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written_back(path: str, net: nn.Module, *, out: str | None = None) -> str:
    """Adapt a file of `net`'s weights and return where the result went."""
    read = load_checkpoint(path)
    assert (read.arch, read.recognised) == ("adaptkit:small_cnn", True)
    torch.testing.assert_close(read.model(X), net(X), rtol=0, atol=0.05)
    out = out or f"out-{path}"
    adapted = adapt(read.model, [X])
    save_checkpoint(out, adapted, like=read)
    again = load_checkpoint(out)
    assert again.adapted is not None
    assert again.adapted["sha256"] == read.sha256
    torch.testing.assert_close(again.model(X), adapted(X), rtol=0.05, atol=0.05)
    return out


def same(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two trees differ, in values or in types."""
    if isinstance(a, Tensor):
        alike = type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        bits = [t.detach().contiguous().view(-1).view(torch.uint8) for t in (a, b)]
        return [] if alike and torch.equal(*bits) else [path]
    if type(a) is not type(b):
        return [path]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{path} keys {list(a)[-3:]} {list(b)[-3:]}"]
        return [where for k in a for where in same(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, (list, tuple)):
        pairs = enumerate(zip(a, b, strict=True))
        return [where for i, (x, y) in pairs for where in same(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def changed_only_statistics(before: Any, after: Any) -> None:
    after = dict(after) if isinstance(after, OrderedDict) else after
    before = dict(before) if isinstance(before, OrderedDict) else before
    if "adaptkit" in after:
        after = {k: v for k, v in after.items() if k != "adaptkit"}
    where = same(before, after)
    assert len(where) == 8, where  # four norm layers, each with a mean and a variance
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var") for name in where)


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda sd: sd,
    "state_dict": lambda sd: {"epoch": 3, "state_dict": sd, "best": 0.5},
    "model": lambda sd: {"model": sd, "args": argparse.Namespace(lr=0.1, name="x")},
    "model_state_dict": lambda sd: {
        "model_state_dict": sd,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        "loss": np.float64(0.25),
        "steps": np.int64(7),
    },
    "net": lambda sd: {"net": sd, "acc": np.float32(91.5), "big": np.array([1.5], ">f8")[0]},
    "ema": lambda sd: {"ema": {"state_dict": sd, "decay": 0.999}, "state_dict": dict(sd)},
    "state_dict_ema": lambda sd: OrderedDict([("state_dict", dict(sd)), ("state_dict_ema", sd)]),
    "deep": lambda sd: {"model": {"net": {"ema": {"state_dict": sd, "n": 1}}}, "v": (1, [2, None])},
}
PREFIXES = ["", "module.", "model.", "_orig_mod.", "backbone.", "module._orig_mod.model.backbone."]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pth.tar"])
def test_nesting_and_all_that_stands_beside(net: SmallCNN, wrapping: str, suffix: str) -> None:
    content = WRAPPINGS[wrapping](dict(net.state_dict()))
    torch.save(content, f"x.{suffix}")
    out = written_back(f"x.{suffix}", net)
    with all_numbers():
        changed_only_statistics(content, torch.load(out, weights_only=True))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(net: SmallCNN, prefix: str) -> None:
    content = {f"{prefix}{k}": v for k, v in net.state_dict().items()}
    torch.save(content, "x.pt")
    save_file(content, "x.safetensors")
    changed_only_statistics(content, torch.load(written_back("x.pt", net), weights_only=True))
    changed_only_statistics(
        dict(sorted(content.items())),
        dict(sorted(load_file(written_back("x.safetensors", net)).items())),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_dtypes(net: SmallCNN, dtype: torch.dtype, name: str) -> None:
    content = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    write = save_file if name.endswith("safetensors") else torch.save
    write(content, name)
    out = written_back(name, net)
    read = load_file(out) if name.endswith("safetensors") else torch.load(out, weights_only=True)
    changed_only_statistics(dict(sorted(content.items())), dict(sorted(read.items())))
    assert next(load_checkpoint(name).model.parameters()).dtype == torch.float32


def test_record_by_record(net: SmallCNN) -> None:
    """A torch file is a zip archive, with a record for each tensor."""
    torch.save({"state_dict": net.state_dict(), "more": torch.ones(5)}, "x.pt")
    out = written_back("x.pt", net)
    with zipfile.ZipFile("x.pt") as before, zipfile.ZipFile(out) as after:
        records = [
            {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
            for archive in (before, after)
        ]
    assert records[0].keys() == records[1].keys()
    differ = [name for name in records[0] if records[0][name] != records[1][name]]
    assert len([name for name in differ if name.startswith("data/")]) == 8
    assert set(differ) - {n for n in differ if n.startswith("data/")} <= {
        "data.pkl",
        ".data/serialization_id",
    }


def test_what_torch_wrote_before_1_6_stays_in_that_form(net: SmallCNN) -> None:
    content = {"state_dict": net.state_dict(), "epoch": 1}
    torch.save(content, "x.pt", _use_new_zipfile_serialization=False)
    out = written_back("x.pt", net)
    assert not zipfile.is_zipfile(out)
    found = torch.load(out, weights_only=True)
    assert found.keys() == {"state_dict", "epoch", "adaptkit"}
    assert len(same(dict(net.state_dict()), dict(found["state_dict"]))) == 8


def test_parameters_and_shared_tensors_stay_what_they_are(net: SmallCNN) -> None:
    state = dict(net.state_dict())
    weight = nn.Parameter(state["features.0.weight"])
    state["features.0.weight"] = weight
    torch.save({"model": state, "tied": state["classifier.bias"]}, "x.pt")
    found = torch.load(written_back("x.pt", net), weights_only=True)
    assert isinstance(found["model"]["features.0.weight"], nn.Parameter)
    tied, bias = found["tied"], found["model"]["classifier.bias"]
    assert tied.untyped_storage().data_ptr() == bias.untyped_storage().data_ptr()


def test_what_is_not_the_models_stays(net: SmallCNN) -> None:
    """AveragedModel of torch.optim counts beside the model; a Lightning module has losses."""
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), "x.pt")
    read = load_checkpoint("x.pt")
    assert read.naming.outside == ("n_averaged",)
    found = torch.load(written_back("x.pt", net), weights_only=True)
    assert found["n_averaged"] == 0
    state = {f"model.{k}": v for k, v in net.state_dict().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": state}, "y.ckpt")
    out = torch.load(written_back("y.ckpt", net), weights_only=True)
    assert torch.equal(out["state_dict"]["loss.weight"], torch.ones(3))


def test_fields_of_others_keep_their_names_and_values(net: SmallCNN) -> None:
    theirs = {"adapted": {"mine": torch.ones(1)}, "transform": {"mine": 1}, "format": "pt"}
    torch.save({**theirs, "net": net.state_dict()}, "x.pt")
    found = torch.load(written_back("x.pt", net), weights_only=True)
    assert same(theirs, {key: found[key] for key in theirs}) == []


@pytest.mark.parametrize("ema", [{"decay": torch.ones(1)}, {"features.0.weight": torch.ones(1)}])
def test_of_several_state_dicts_that_which_fits_is_meant(net: SmallCNN, ema: Any) -> None:
    torch.save({"model": net.state_dict(), "ema": ema}, "x.pt")
    for arch in (None, "adaptkit:small_cnn"):
        assert load_checkpoint("x.pt", arch=arch).content.path == ("model",)
    torch.save({"ema": ema}, "y.pt")
    with pytest.raises(CheckpointError, match=r"\(the weights under 'ema'\)$"):
        load_checkpoint("y.pt")


@pytest.mark.parametrize("write", [save_file, torch.save])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors", "x.model"])
def test_a_file_of_the_same_suffix_is_of_the_same_kind(
    net: SmallCNN, write: Any, name: str
) -> None:
    write(dict(net.state_dict()), name)
    out = written_back(name, net)
    assert zipfile.is_zipfile(out) == zipfile.is_zipfile(name)


def test_two_tensors_of_one_name_are_refused(net: SmallCNN) -> None:
    state = net.state_dict()
    torch.save({**state, **{f"module.{k}": v for k, v in state.items()}}, "x.pt")
    with pytest.raises(
        CheckpointError, match=r"holds both '\S+' and 'module\.\S+', which would be"
    ):
        load_checkpoint("x.pt")


def test_a_model_that_has_such_a_name_itself_keeps_it(net: SmallCNN, here: Path) -> None:
    (here / "nets.py").write_text(
        "from torch import nn\n"
        "from adaptkit.models import SmallCNN\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.backbone = SmallCNN(num_classes=3, width=4)\n"
        "    def forward(self, x):\n"
        "        return self.backbone(x)\n"
    )
    torch.save({f"module.backbone.{k}": v for k, v in net.state_dict().items()}, "x.pt")
    read = load_checkpoint("x.pt", arch="nets.py:Net")
    assert torch.equal(read.model(X), net(X))
    assert next(iter(read.naming.names.values())) == "backbone.features.0.weight"


# Sharded safetensors.


def write_sharded(net: nn.Module, folder: Path) -> Path:
    state = {f"model.{k}": v for k, v in net.state_dict().items()}
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(state.items())[:9]), dict(list(state.items())[9:])]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    index = {
        "more": [1],
        "metadata": {"total_size": 1234, "who": "them"},
        "weight_map": {k: n for n, part in zip(names, parts, strict=True) for k in part},
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_shards_stay_shards(net: SmallCNN, here: Path) -> None:
    source = write_sharded(net, here)
    out = written_back(source.name, net, out="b.safetensors.index.json")
    index = json.loads(Path(out).read_text())
    assert index["metadata"]["who"] == "them"
    assert (index["more"], next(iter(index))) == ([1], "more")
    assert set(index["weight_map"].values()) == {
        "b-00001-of-00002.safetensors",
        "b-00002-of-00002.safetensors",
    }
    for i in (1, 2):
        before = load_file(f"model-0000{i}-of-00002.safetensors")
        after = load_file(f"b-0000{i}-of-00002.safetensors")
        assert before.keys() == after.keys()
        with safe_open(f"b-0000{i}-of-00002.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert all("running" in where for where in same(before, after, ""))
    one = written_back(source.name, net, out="one.safetensors")
    assert load_file(one).keys() == index["weight_map"].keys()
    torch.save(net.state_dict(), "x.pt")
    with pytest.raises(OutputError, match="only a sharded checkpoint is written as one"):
        save_checkpoint("c.safetensors.index.json", net, like=load_checkpoint("x.pt"))


def test_shards_are_not_overwritten(net: SmallCNN, here: Path) -> None:
    read = load_checkpoint(write_sharded(net, here))
    Path("b-00002-of-00002.safetensors").write_text("mine")
    with pytest.raises(OutputError, match=r"b-00002-of-00002\.safetensors exists already"):
        save_checkpoint("b.safetensors.index.json", read.model, like=read)
    assert not Path("b.safetensors.index.json").exists()


def test_shards_of_the_source_are_never_written(net: SmallCNN, here: Path) -> None:
    source = write_sharded(net, here).rename("other.safetensors.index.json")
    read = load_checkpoint(source)
    with pytest.raises(OutputError, match=r"model-00001-of-00002\.safetensors is also the input"):
        save_checkpoint("model.safetensors.index.json", read.model, like=read, force=True)
    with pytest.raises(OutputError, match=r"model-00002-of-00002\.safetensors is also the input"):
        save_checkpoint("model-00002-of-00002.safetensors", read.model, like=read, force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("weight_map"), "expected an object with a 'weight_map'"),
        (lambda i: i.update(weight_map=[]), "expected an object with a 'weight_map'"),
        (lambda i: i.update(weight_map={}), "expected an object with a 'weight_map'"),
        (lambda i: i["weight_map"].update(w=3), "expected an object with a 'weight_map'"),
        (lambda i: i["weight_map"].update(w="../x.safetensors"), r"names \.\./x\.safetensors as"),
        (lambda i: i["weight_map"].update(w="/etc/passwd"), "names /etc/passwd as a shard"),
        (lambda i: i["weight_map"].update(w="x.safetensors"), r"no checkpoint x\.safetensors"),
        (
            lambda i: i["weight_map"].update(w="model-00001-of-00002.safetensors"),
            r"lists 10 tensors in it, which holds 9 \(w in one only\)",
        ),
        (lambda i: i.update(metadata=[1]), "expected its 'metadata' to be an object"),
        (lambda i: i["metadata"].update(adaptkit=[1]), "expected its 'metadata' to be an object"),
        (
            lambda i: i["metadata"].update(adaptkit={"training": 1}),
            "what adaptkit wrote into it was",
        ),
        (lambda i: i["metadata"].update(adaptkit={"format": "x"}), "unknown format 'x'"),
    ],
)
def test_broken_indices(net: SmallCNN, here: Path, change: Any, message: str) -> None:
    path = write_sharded(net, here)
    index = json.loads(path.read_text())
    change(index)
    Path("bad.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint("bad.safetensors.index.json")
    assert "\n" not in str(caught.value)


def test_a_broken_shard_is_named(net: SmallCNN, here: Path) -> None:
    path = write_sharded(net, here)
    Path("model-00002-of-00002.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is broken"):
        load_checkpoint(path)


# From others.


def test_what_a_training_script_calls_its_architecture_is_told(net: SmallCNN) -> None:
    state = {k.replace("classifier", "head"): v for k, v in net.state_dict().items()}
    torch.save({"arch": "tiny_net", "state_dict": state}, "x.pt")
    with pytest.raises(
        CheckpointError, match=r"x\.pt says it is of 'tiny_net', .* looks like adapt"
    ):
        load_checkpoint("x.pt")


def test_a_file_that_lightning_wrote(net: SmallCNN, here: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, lr: float = 0.1, size: tuple[int, int] = (8, 8)) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = net
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))

        def training_step(self, batch: Any, _: int) -> Tensor:
            images, labels = batch
            loss: Tensor = self.loss(self.model(images), labels)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])]

    data = torch.utils.data.TensorDataset(X, torch.zeros(16, dtype=torch.long))
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of Lightning's, on workers and logging
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(dirpath=here)],
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=8))
        trainer.save_checkpoint("x.ckpt")
    read = load_checkpoint("x.ckpt")
    assert read.naming.outside == ("loss.weight",)
    out = written_back("x.ckpt", net.eval())
    with all_numbers():
        before, after = (torch.load(name, weights_only=True) for name in ("x.ckpt", out))
    assert after["pytorch-lightning_version"] == lightning.__version__
    changed_only_statistics(before, after)
    again = Module.load_from_checkpoint(out, weights_only=True)
    assert torch.equal(again.model.eval()(X), load_checkpoint(out).model(X))


def all_numbers() -> Any:
    """Let torch read numpy's numbers as they are, to compare them."""
    numpy_own = [
        np.dtype,
        type(np.dtype("f8")),
        type(np.dtype("f4")),
        type(np.dtype("i8")),
        (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
        argparse.Namespace,
    ]
    return torch.serialization.safe_globals(numpy_own)  # type: ignore[arg-type]
