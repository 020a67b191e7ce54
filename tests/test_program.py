"""Programs of torch.export: as their models, written back, and hostile ones."""

import copy
import io
import json
import os
import pickle
import random
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet18

from adaptkit import CheckpointError, adapt, estimate, norms
from adaptkit.estimation.probe import probe
from adaptkit.models import SmallCNN
from adaptkit.program import Program, is_program, program_bytes, read_program

PATH = Path("x.pt2")
AUTO = torch.export.Dim.AUTO
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Norm layers of all kinds, one at two places, and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = self.again = nn.BatchNorm2d(4, eps=1e-3)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.own = nn.BatchNorm2d(4, track_running_stats=False)
        self.flat = nn.BatchNorm1d(4, affine=False, momentum=0.3)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 5, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((4, 1, 1), 1.5), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.again(self.bn(self.conv(x)).relu_())
        x = self.instance(x) * self.scale + torch.tensor([2.0])
        n, c, h, w = x.shape
        x = torch.cat(x.reshape(n, c, h * w).chunk(2, -1), -1).mean(-1)
        x = self.flat(x)
        return {"out": self.first(x), "more": (self.second(x), [n])}


class ByBatch(Net):
    """One whose own statistics are each batch's."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return super().forward(self.own(self.conv(x))[:, :3])


class Fixed(nn.Module):
    """Works for eight images only."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(x).view(8, -1))
        return logits


def randomised(model: nn.Module) -> nn.Module:
    """Give norm layers statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in norms.norm_layers(model).values():
            for name, low in (("running_mean", -0.5), ("running_var", 0.5)):
                buffer = getattr(layer, name)
                buffer.copy_(low + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def export(
    model: nn.Module,
    *inputs: Tensor,
    dynamic: bool = True,
    decomposed: bool = False,
    train: bool = False,
) -> bytes:
    shapes = tuple({0: AUTO} for _ in inputs) if dynamic else None
    program = torch.export.export(model.train(train), inputs, dynamic_shapes=shapes)
    if decomposed:
        program = program.run_decompositions()
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def images(count: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return randomised(SmallCNN(in_channels=3, width=4, num_classes=3))


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Net())


@cache
def small() -> bytes:
    return export(small_cnn(), images())


@cache
def whole() -> bytes:
    return export(net(), images())


def read(content: bytes) -> Program:
    return read_program(PATH, content)


def load(content: bytes, extra: dict[str, Any] | None = None) -> nn.Module:
    program = torch.export.load(io.BytesIO(content), extra_files=extra)
    model: nn.Module = program.module()
    return model


def refused(content: bytes, message: str = r"^x\.pt2 ") -> str:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        read(content)
    assert caught.value.__cause__ is None
    assert time.process_time() - start < 5
    text = str(caught.value)
    assert text.startswith("x.pt2 ")
    assert "\n" not in text
    assert len(text) < 500
    return text


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(
        torch.allclose(torch.as_tensor(x), torch.as_tensor(y), rtol=tolerance, atol=tolerance)
        for x, y in pairs
    )


def records(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def zipped(parts: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, held in parts.items():
            archive.writestr(name if name.startswith("/") else f"archive/{name}", held)
    return buffer.getvalue()


def edited(content: bytes, name: str, change: Callable[[Any], object]) -> bytes:
    """Return a program of which `change` has changed a record of JSON."""
    parts = records(content)
    tree = json.loads(parts[name])
    change(tree)
    return zipped({**parts, name: json.dumps(tree).encode()})


def nodes(tree: Any) -> Any:
    return tree["graph_module"]["graph"]["nodes"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("*")), "code in a file ran"


# As models.


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_cnn, {}),
        (small_cnn, {"dynamic": False}),
        (small_cnn, {"decomposed": True}),
        (small_cnn, {"dynamic": False, "decomposed": True}),
        (net, {}),
    ],
)
def test_a_program_is_its_model(make: Callable[[], nn.Module], options: dict[str, bool]) -> None:
    model = make()
    program = read(export(model, images(), **options))
    expected = model.state_dict()
    assert not any(module.training for module in program.model.modules())
    assert program.input_shape == (2 if "dynamic" in options else None, 3, 16, 16)
    assert program.record == {}
    assert program.state_dict.keys() == program.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(program.state_dict[key], expected[key]) for key in expected)
    layers, wanted = norms.norm_layers(program.model), norms.norm_layers(model)
    assert {k: repr(v) for k, v in layers.items()} == {k: repr(v) for k, v in wanted.items()}
    for count in (1, 2, 5):
        given = program.model(images(count))
        assert same(given, model(images(count)))
        assert type(given) is type(model(images(count)))


def test_it_can_be_copied_and_moved() -> None:
    program = read(whole())
    copied = copy.deepcopy(program.model)
    assert copied.again is copied.bn
    assert copied.get_parameter("second.weight") is copied.get_parameter("first.weight")
    assert copied.to("meta")(images().to("meta"))["out"].shape == (2, 5)
    assert same(program.model(images()), net()(images()))
    assert program.state_dict["bn.running_mean"].data_ptr() != (
        norms.norm_layers(program.model)["bn"].running_mean.data_ptr()  # type: ignore[operator]
    )


@pytest.mark.parametrize("make", [small_cnn, net])
@pytest.mark.parametrize("mode", ["exact", "stream"])
def test_it_is_adapted_as_its_model_is(make: Callable[[], nn.Module], mode: Any) -> None:
    model, program = make(), read(small() if make is small_cnn else whole())
    data = [images(10, seed=1), images(7, seed=2)]
    expected, found = (estimate(m, data, mode=mode) for m in (model, program.model))
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name].mean, expected[name].mean)
        assert torch.equal(found[name].variance(), expected[name].variance())
    assert same(adapt(program.model, data)(images()), adapt(model, data)(images()))


def test_its_norm_layers_work_in_place_where_those_of_its_model_do() -> None:
    for make, content in ((small_cnn, small()), (net, whole())):
        looks = []
        for model in (make(), read(content).model):
            layers = norms.norm_layers(model)
            with torch.no_grad():
                looks.append(probe(model, layers, images(), lambda m, x: m(x)))
        assert looks[1].visits == looks[0].visits
        assert looks[1].owned == looks[0].owned
        assert looks[1].waiting <= looks[0].waiting


def test_a_resnet() -> None:
    model = randomised(resnet18(num_classes=5))
    content = export(model, images(2, 32))
    program = read(content)
    assert list(norms.norm_layers(program.model)) == list(norms.norm_layers(model))
    data = [images(12, 32)]
    adapted, expected = adapt(program.model, data), adapt(model, data)
    assert same(adapted(images(3, 32)), expected(images(3, 32)), 1e-6)
    written = program_bytes(content, statistics(adapted), {})
    assert same(load(written)(images(3, 32)), expected(images(3, 32)), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32_and_stored_as_they_were(
    dtype: torch.dtype,
) -> None:
    model = small_cnn().to(dtype)
    content = export(model, images().to(dtype))
    program = read(content)
    assert program.state_dict["features.1.running_mean"].dtype == dtype
    assert {p.dtype for p in program.model.parameters()} == {torch.float32}
    wide = copy.deepcopy(model).float()
    assert same(program.model(images()), wide(images()))
    adapted, expected = adapt(program.model, [images(9)]), adapt(wide, [images(9)])
    assert same(adapted(images()), expected(images()))
    written = program_bytes(content, statistics(adapted), {})
    assert read(written).state_dict["features.1.running_mean"].dtype == dtype
    given = load(written)(images().to(dtype)).float()
    assert same(given, expected(images()), 0.05)


def test_the_device_of_the_export_does_not_matter() -> None:
    class Grid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(x.shape[-1], device=x.device) + torch.ones(16)

    content = export(Grid(), images())

    def moved(tree: Any) -> Any:
        if isinstance(tree, list):
            return [moved(part) for part in tree]
        if not isinstance(tree, dict):
            return tree
        return {
            k: {"type": "cuda", "index": 0} if k.endswith("device") else moved(v)
            for k, v in tree.items()
        }

    for name in (MODEL, WEIGHTS):
        content = edited(content, name, lambda tree: tree.update(moved(dict(tree))))
    assert b'"cuda"' in content
    model = read(content).model
    assert same(model(images()), Grid()(images()))
    assert model(images().to("meta")).is_meta


def test_a_model_without_norm_layers_has_none() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x)).mean((2, 3))

    assert norms.norm_layers(read(export(Folded(), images())).model) == {}


def test_statistics_of_each_batch_are_left_to_the_batch() -> None:
    torch.manual_seed(0)
    model = randomised(ByBatch())
    program = read(export(model, images()))
    assert list(norms.norm_layers(program.model)) == list(norms.norm_layers(model))
    assert same(program.model(images(4)), model(images(4)), 1e-6)


# Numbers of images.


def test_a_program_for_one_number_of_images_is_refused() -> None:
    text = refused(
        export(Fixed(), images(8, 4), dynamic=False), "works for batches of 8 only, as it was"
    )
    assert "torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export." in text


def test_images_that_change_one_another_show_where_the_number_was_fixed() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).mean((2, 3))

    refused(export(Centred(), images(), dynamic=False), "works for batches of 2 only")
    assert read(export(Centred(), images())).model(images(3)).shape == (3, 3)


# What is not an image model in eval mode.


class Given(nn.Module):
    """Gives what a function does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.bn(inputs[0]) if inputs[0].ndim == 4 else inputs[0], *inputs[1:])


def test_training_mode_is_refused() -> None:
    train = export(Given(lambda x: x), images(), dynamic=False, train=True)
    dropout = export(Given(lambda x: F.dropout(x, training=True)), images(), dynamic=False)
    for content in (train, dropout):
        refused(content, r"is of a model in training mode: export model\.eval\(\)")


def test_other_inputs_are_refused() -> None:
    two = export(Given(lambda x, y: x + y), images(), images(), dynamic=False)
    refused(two, r"takes 2 inputs \(inputs_0, inputs_1\), expected one image input")
    flat = export(Given(lambda x: x * 2), torch.rand(2, 5), dynamic=False)
    refused(flat, r"takes a tensor of shape \(2, 5\), expected one image input")
    counts = export(Given(lambda x: x * 2), torch.ones(3, 4, 4).long(), dynamic=False)
    refused(counts, "expected one image input")


def test_computed_statistics_are_refused() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Conv2d(3, 2, 1))
    refused(export(model, images(), decomposed=True), "statistics that are no layer's")


def test_random_numbers_and_graphs_within_graphs_are_refused() -> None:
    random = export(Given(lambda x: x + torch.rand_like(x)), images(), dynamic=False)
    refused(
        random, r"calls 'torch\.ops\.aten\.rand_like\.default', which is none of the operations"
    )

    def inner(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    refused(export(Given(inner), images(), dynamic=False), "holds a graph within its graph")


def test_older_files_say_how_to_renew_them() -> None:
    old = io.BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("version", "8.3")
        archive.writestr("serialized_exported_program.json", "{}")
    assert is_program(old.getvalue())
    refused(old.getvalue(), r"older torch: load it with torch\.export\.load and save it with")
    refused(zipped({**records(small()), "data/weights/model.pt": b""}), "written by an older torch")
    newer = edited(small(), MODEL, lambda tree: tree["schema_version"].update(major=9))
    refused(newer, "of version 9 of torch's schema, expected 8")


def test_which_files_are_programs() -> None:
    weights = io.BytesIO()
    torch.save(small_cnn().state_dict(), weights)
    assert is_program(small())
    for other in (weights.getvalue(), b"", b"PK\x03\x04", small()[:-100], zipped({"a": b""})):
        assert not is_program(other)


# Written back.


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if "running" in k}


def test_only_the_changed_buffers_and_the_record_change() -> None:
    content, model = small(), small_cnn()
    adapted = adapt(read(content).model, [images(9)])
    record = {"adapted": {"method": "adabn", "images": 9}}
    written = program_bytes(content, statistics(adapted), record)
    before, after = records(content), records(written)
    assert list(after) == [*before, "extra/adaptkit.json"]
    config = json.loads(before[WEIGHTS])["config"]
    ours = {f"data/weights/{config[name]['path_name']}" for name in statistics(model)}
    assert {name for name in before if after[name] != before[name]} == ours
    extra = {"adaptkit.json": ""}
    assert same(load(written, extra)(images(5)), adapted(images(5)))
    assert json.loads(extra["adaptkit.json"]) == record
    found = read(written)
    assert found.record == record
    assert same(found.model(images(5)), adapted(images(5)))
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        for info in archive.infolist():
            name, more = struct.unpack_from("<HH", written, info.header_offset + 26)
            assert (info.header_offset + 30 + name + more) % 64 == 0


def test_a_program_is_adapted_again_and_back() -> None:
    first = program_bytes(whole(), statistics(adapt(net(), [images(9)])), {"n": 1})
    again = program_bytes(first, statistics(net()), {"n": 2})
    assert read(again).record == {"n": 2}
    assert list(records(again)) == list(records(first))
    expected = {**records(whole()), "extra/adaptkit.json": b'{"n": 2}'}
    assert records(again) == expected
    assert same(load(again)(images()), net()(images()))


def test_tensors_that_share_memory() -> None:
    base = torch.arange(12.0)
    model = Given(lambda x: x)
    model.bn.running_mean, model.bn.running_var = base[1:4], base[6:12:2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        content = export(model, images(), dynamic=False)
        model.bn.running_var = base[2:5]
        overlapping = export(model, images(), dynamic=False)
    changed = {"bn.running_mean": torch.tensor([7.0, 8.0, 9.0])}
    found = read(program_bytes(content, changed, {})).state_dict
    assert found["bn.running_mean"].tolist() == [7, 8, 9]
    assert found["bn.running_var"].tolist() == [6, 8, 10]
    with pytest.raises(CheckpointError, match="shares memory with a tensor that would get other"):
        program_bytes(overlapping, changed, {})
    with pytest.raises(CheckpointError, match="shares memory"):
        program_bytes(
            whole(), {"bn.running_var": torch.ones(4), "again.running_var": torch.zeros(4)}, {}
        )
    for bad in ({"other": torch.ones(3)}, {"bn.running_var": torch.ones(4)}):
        with pytest.raises(CheckpointError, match="is not of the program's form"):
            program_bytes(content, bad, {})


# Hostile.


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


EVIL = "__import__('os').system('touch executed')"


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.os.system",
        "torch.ops.aten.os.system",
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.relu.default.__init__",
        "torch.ops.aten.relu.out",
        "torch.ops.aten.__init__.default",
        "torch.ops.aten.native_batch_norm.default",
        "torch.ops.higher_order.cond",
        "torch.serialization.load",
        "torch.hub.load",
        "_operator.attrgetter",
        "_operator.__builtins__.exec",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "#extension:evil",
        "exec",
        EVIL,
        "",
        None,
        3,
        ["torch"],
    ],
)
def test_what_is_no_harmless_operation_is_never_called(target: Any) -> None:
    def change(tree: Any) -> None:
        (node,) = (n for n in nodes(tree) if n["target"].endswith("flatten.using_ints"))
        node["target"] = target
        node["inputs"] = [{"name": "a", "arg": {"as_string": "touch executed"}, "kind": 1}]

    refused(edited(small(), MODEL, change))


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        f"Symbol('s77') + {EVIL}",
        "Symbol.__class__",
        "exec('import os')",
        "Integer(1).__class__.__mro__",
        "(lambda: open('executed', 'w'))()",
        'Symbol("s77")',
        "s77; import os",
        "1" * 50 + "x",
    ],
)
def test_expressions_hold_no_more_than_sizes_need(text: str) -> None:
    def size(tree: Any) -> None:
        tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = (
            text
        )

    refused(edited(small(), MODEL, size), r"would run code \(.*\) when torch loads it")
    guard = edited(small(), MODEL, lambda tree: tree.update(guards_code=[text]))
    refused(guard, r"would run code \(.*\) when torch loads it")


@pytest.mark.parametrize("name", [f"x = {EVIL}", "a\nb", "1x", "relu; import os", "x'"])
def test_names_are_names(name: str) -> None:
    def value(tree: Any) -> None:
        nodes(tree)[0]["outputs"][0]["as_tensor"]["name"] = name
        nodes(tree)[1]["inputs"][0]["arg"]["as_tensor"]["name"] = name

    def node(tree: Any) -> None:
        nodes(tree)[0]["name"] = name

    def image(tree: Any) -> None:
        tree["graph_module"]["signature"]["input_specs"][-1] = {
            "user_input": {"arg": {"as_tensor": {"name": name}}}
        }

    for change in (value, node, image):
        refused(edited(small(), MODEL, change), r"would run code \(.*\) when torch loads it")


@pytest.mark.parametrize(
    "name",
    [
        f"features.{EVIL}",
        "forward",
        "_graph",
        "features.forward",
        "features.training",
        "__class__.weight",
        "",
        "features..weight",
        "a." * 100 + "b",
        "features.1.running_mean.x",
    ],
)
def test_tensors_have_names_that_tensors_can_have(name: str) -> None:
    def config(tree: Any) -> None:
        tree["config"][name] = tree["config"].pop("features.1.num_batches_tracked")

    def signature(tree: Any) -> None:
        for spec in tree["graph_module"]["signature"]["input_specs"]:
            if spec.get("buffer", {}).get("buffer_name") == "features.1.num_batches_tracked":
                spec["buffer"]["buffer_name"] = name

    refused(edited(edited(small(), WEIGHTS, config), MODEL, signature))


@pytest.mark.parametrize("function", [os.system, exec, eval])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_run_nothing(function: Any, protocol: int) -> None:
    evil = pickle.dumps(Calls(function, "import os; os.system('touch executed')"), protocol)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/version", "3")
    for samples in (buffer.getvalue(), evil):
        refused(zipped({**records(small()), SAMPLES: samples}), "would run code|is broken")

    def pickled(tree: Any) -> None:
        tree["config"]["features.0.weight"]["use_pickle"] = True

    weights = zipped({**records(small()), "data/weights/weight_0": evil})
    refused(edited(weights, WEIGHTS, pickled), "opening it could run code")
    for name in ("custom_obj_0", "opaque_obj_0"):
        parts = {**records(small()), f"data/constants/{name}": evil}
        refused(zipped(parts), "which is no part of a program of tensors alone")


@pytest.mark.parametrize(
    "name",
    [
        "../executed",
        "extra/../../executed",
        "/executed-by-zip",
        "extra\\..\\executed",
        "data/aotinductor/model/model.so",
        "executorch/x",
        "extra/a\nb",
    ],
)
def test_other_records_are_refused(name: str) -> None:
    refused(zipped({**records(small()), name: b"content"}), "which is no part of a program")


def test_records_that_unpack_to_more_than_there_is() -> None:
    parts = {**records(small()), "data/weights/weight_0": bytes(50 * 2**20)}
    refused(zipped(parts, zipfile.ZIP_DEFLATED), "its records are compressed or overlap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Duplicate name
        buffer = io.BytesIO(zipped(records(small())))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("archive/data/weights/weight_0", b"")
    refused(buffer.getvalue(), "it has two records of a name")
    other = {**records(small()), "models/other.json": records(small())[MODEL]}
    refused(zipped(other), "holds 2 programs, expected one")


@pytest.mark.parametrize(
    "sizes", [[2**40, 2**10, 1, 1], [2**62, 2**62, 1, 1], [-1, 1, 1, 1], [4, 3, 3, 4], [True] * 4]
)
@pytest.mark.parametrize("strides", [[27, 9, 3, 1], [0, 0, 0, 0], [-1, 1, 1, 1], [2**40] * 4])
def test_tensors_that_are_not_in_the_file(sizes: list[int], strides: list[int]) -> None:
    def change(tree: Any) -> None:
        meta = tree["config"]["features.0.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": n} for n in sizes]
        meta["strides"] = [{"as_int": n} for n in strides]

    refused(edited(small(), WEIGHTS, change), "is broken")


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("repeat", {"self": {"as_tensor": {"name": "x"}}, "repeats": {"as_ints": [2**7] * 4}}),
        ("repeat", {"self": {"as_tensor": {"name": "x"}}, "repeats": {"as_ints": [2**62] * 4}}),
        ("full", {"size": {"as_ints": [2**20, 2**12]}, "fill_value": {"as_int": 0}}),
        (
            "full",
            {
                "size": {"as_ints": [2**20] * 2},
                "fill_value": {"as_int": 0},
                "device": {"as_device": {"type": "cpu", "index": None}},
            },
        ),
        (
            "full",
            {
                "size": {"as_ints": [2**20] * 2},
                "fill_value": {"as_int": 0},
                "device": {"as_none": True},
            },
        ),
        ("arange", {"end": {"as_int": 2**50}}),
        ("arange", {"end": {"as_float": "Infinity"}}),
    ],
)
def test_steps_that_would_take_all_memory(name: str, inputs: dict[str, Any]) -> None:
    def change(tree: Any) -> None:
        step = {
            "target": f"torch.ops.aten.{name}.default",
            "inputs": [{"name": k, "arg": v, "kind": 1} for k, v in inputs.items()],
            "outputs": [{"as_tensor": {"name": "bomb"}}],
            "metadata": {},
        }
        nodes(tree).insert(0, step)

    text = refused(edited(small(), MODEL, change), "GiB of memory for an image|do not fit together")
    assert "allocate" not in text


def test_numbers_and_lists_without_end() -> None:
    def squares(tree: Any) -> None:
        last: dict[str, Any] = {"as_int": 3}
        for i in range(100):
            step = {"target": "_operator.mul", "metadata": {}}
            inputs = [{"name": k, "arg": last, "kind": 1} for k in "ab"]
            outputs = [{"as_sym_int": {"as_name": f"n{i}"}}]
            nodes(tree).insert(i, {**step, "inputs": inputs, "outputs": outputs})
            last = {"as_sym_int": {"as_name": f"n{i}"}}

    refused(edited(small(), MODEL, squares), "gives a number that is too large")

    def lists(tree: Any) -> None:
        inputs = [
            {"name": "a", "arg": {"as_ints": [0]}, "kind": 1},
            {"name": "b", "arg": {"as_int": 2**60}, "kind": 1},
        ]
        outputs = [{"as_sym_int": {"as_name": "n"}}]
        step = {"target": "_operator.mul", "metadata": {}, "inputs": inputs, "outputs": outputs}
        nodes(tree).insert(0, step)

    refused(edited(small(), MODEL, lists), "expects numbers")
    many = edited(small(), MODEL, lambda tree: nodes(tree).extend([{}] * 50_000))
    refused(many, "steps: it is no model's")
    deep = records(small())
    deep[MODEL] = b"[" * 100_000
    refused(zipped(deep), "is broken")
    deep[MODEL] = b"9" * 100_000
    refused(zipped(deep), "is broken")


def test_statistics_of_other_sizes_and_other_forms() -> None:
    def short(tree: Any) -> None:
        meta = tree["config"]["features.1.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 1}]

    refused(edited(small(), WEIGHTS, short), "has statistics of two sizes")

    def form(tree: Any) -> None:
        spec = '[1, {"type": "os.system", "context": "null", "children_spec": []}]'
        tree["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    refused(edited(small(), MODEL, form), r"gives its outputs as os\.system, expected a tensor")

    def written(tree: Any) -> None:
        (node, *_) = (n for n in nodes(tree) if n["target"] == "torch.ops.aten.relu.default")
        node["target"] = "torch.ops.aten.relu_.default"
        node["inputs"][0]["arg"]["as_tensor"]["name"] = "b_features_1_running_mean"

    refused(edited(small(), MODEL, written), "changes its own tensors and so is of a model in tra")


def test_damage_ends_in_one_line_or_in_a_model() -> None:
    content = small()
    rng = random.Random(0)
    size = len(content)
    damaged = [content[: rng.randrange(size)] for _ in range(15)]
    for _ in range(45):
        where, bit = rng.randrange(size), 1 << rng.randrange(8)
        damaged.append(content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :])
    parts = records(content)
    for name in (MODEL, WEIGHTS):
        for _ in range(15):  # with sums that are right
            held = bytearray(parts[name])
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
            damaged.append(zipped({**parts, name: bytes(held)}))
    opened = 0
    for sample in damaged:
        with suppress(CheckpointError):
            read(sample)
            opened += 1
    assert 0 < opened < len(damaged) // 2
