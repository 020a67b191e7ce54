"""--arch FILE.py:FACTORY and package.module:FACTORY: a user's own code makes the model."""

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit import CheckpointError
from adaptkit.architectures import (
    arguments_of,
    build,
    default_transform,
    runs_code,
    without_memory,
)

NETS = """
from dataclasses import dataclass
from torch import nn


@dataclass
class Sizes:
    width: int = 4


class Net(nn.Sequential):
    def __init__(self, num_classes=10, width=4):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(),
                         nn.LazyLinear(3) if width == 0 else nn.Linear(width, num_classes))
        self.sizes = Sizes(width)


def make(num_classes=10, width=4):
    print("making a net")
    return Net(num_classes, width)


def other(width=4, **kwargs):
    return Net(5, width)


def background(num_classes):
    return nn.Linear(4, num_classes + 1)


NUMBER = 3
MODEL = Net()
"""


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def refused(spec: str, kwargs: dict[str, Any] | None = None, found: Any = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(spec, kwargs, found)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


# What is built.


@pytest.mark.parametrize("spec", ["nets.py:make", "nets.py:Net", "./nets.py:make", "nets:make"])
def test_a_function_or_a_class_makes_the_model(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = torch.random.get_rng_state(), list(sys.path)
    theirs = build(spec, {"num_classes": 7, "width": 2})
    state_dict = theirs.state_dict()
    model = build(spec, {"width": 2}, state_dict)
    model.load_state_dict(state_dict, strict=True)
    assert arguments_of(spec, build(spec, {"num_classes": 3}).state_dict()) == {"num_classes": 3}
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.path == path
    printed = capsys.readouterr()
    assert printed.out == ""
    # Once for each model, and not for those without memory that show the number of classes.
    assert printed.err.count("making a net") == (0 if spec.endswith("Net") else 3)


def test_an_absolute_path_and_a_module_in_a_package(tmp_path: Path) -> None:
    package = tmp_path / "mine" / "deep"
    package.mkdir(parents=True)
    (tmp_path / "mine" / "__init__.py").touch()
    (package / "nets.py").write_text(NETS, encoding="utf-8")
    for spec in (f"{package / 'nets.py'}:make", "mine.deep.nets:make"):
        assert len(build(spec, {"num_classes": 3}).state_dict()["3.bias"]) == 3


@pytest.mark.parametrize("spec", ["nets.py:Net", "nets:Net"])
def test_the_model_can_be_pickled_and_copied(spec: str) -> None:
    model = build(spec)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert twin.sizes == model.sizes


def test_an_unchanged_file_is_imported_once_and_a_changed_one_anew() -> None:
    assert type(build("nets.py:Net")) is type(build("./nets.py:Net"))
    Path("nets.py").write_text(NETS.replace("width=4", "width=6"), encoding="utf-8")
    assert build("nets.py:Net").state_dict()["1.bias"].shape == (6,)
    assert not Path("__pycache__").exists()


def test_a_file_imports_its_neighbours_and_from_the_current_folder() -> None:
    Path("deep").mkdir()
    Path("deep/neighbour.py").write_text("width = 2")
    Path("common.py").write_text("classes = 3")
    Path("deep/nets.py").write_text(
        "from torch import nn\nfrom neighbour import width\n"
        "def make():\n    from common import classes\n    return nn.Linear(width, classes)"
    )
    assert build("deep/nets.py:make").weight.shape == (3, 2)


def test_shapes_say_how_many_classes_where_the_factory_asks_for_it() -> None:
    assert arguments_of("nets.py:background", nn.Linear(4, 6).state_dict()) == {"num_classes": 5}
    assert arguments_of("nets.py:other", build("nets.py:Net").state_dict()) == {}
    assert build("nets.py:other", state_dict={}).state_dict()["3.bias"].shape == (5,)
    assert without_memory("nets.py:Net", {"num_classes": 6}).state_dict()["3.bias"].is_meta


def test_a_factory_that_needs_real_tensors_is_built_as_it_says() -> None:
    Path("real.py").write_text(
        "from torch import nn\n"
        "def make(num_classes=3):\n"
        "    layer = nn.Linear(4, num_classes)\n"
        "    assert layer.weight.abs().sum().item() > 0\n"
        "    return layer\n"
        "def small(num_classes=3):\n"
        "    if num_classes > 100:\n"
        "        raise SystemExit('too many')\n"
        "    return nn.Linear(4, num_classes)\n"
    )
    for name in ("make", "small"):
        state_dict = nn.Linear(4, 5).state_dict()
        assert arguments_of(f"real.py:{name}", state_dict) == {}
        assert build(f"real.py:{name}", state_dict=state_dict).weight.shape == (3, 4)
        assert build(f"real.py:{name}", {"num_classes": 5}, state_dict).weight.shape == (5, 4)


def test_lazy_layers_and_functions_of_libraries_will_do() -> None:
    assert build("nets.py:Net", {"width": 0}, {})
    assert build("torch.nn:Linear", {"in_features": 2, "out_features": 3}).weight.shape == (3, 2)
    Path("borrowed.py").write_text("from torchvision.models import squeezenet1_1 as make")
    state_dict = build("borrowed.py:make", {"num_classes": 4}).state_dict()
    assert arguments_of("borrowed.py:make", state_dict) == {}  # it takes any **kwargs


# What is not.


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("nowhere.py:make", ["cannot read ", "nowhere.py (No such file or directory): give the"]),
        (".:make", ["unknown architecture '.:make'"]),
        ("nets.py", ["unknown architecture 'nets.py': expected", "did you mean nets.py:FACTORY?"]),
        ("nets.py:", ["unknown architecture 'nets.py:'"]),
        ("nets.py:make()", ["unknown architecture 'nets.py:make()'"]),
        ("./nets:make", ["unknown architecture './nets:make'", "did you mean ./nets.py:make?"]),
        ("nothing:make", ["unknown architecture 'nothing:make': expected adaptkit:NAME, ibn:"]),
        ("nets.deeper:make", ["unknown architecture 'nets.deeper:make'"]),
        ("nets.py:maek", ["a class or function 'maek', there is none: did you mean make?"]),
        ("nets:maek", ["a class or function 'maek', there is none: did you mean make?"]),
        ("nets.py:xyz", ["'xyz', there is none: it has dataclass, Sizes, Net, ..."]),
        ("nets.py:NUMBER", ["expected a class or function 'NUMBER', got a int"]),
        ("nets.py:MODEL", ["MODEL is a model, expected what makes one: name a function"]),
        ("nets.py:Sizes", ["'nets.py:Sizes' returned a Sizes, expected a torch.nn.Module"]),
        ("a\nb.py:make", ["architecture 'a\\nb.py:make': cannot read"]),
        ("a\0b.py:make", ["architecture 'a\\x00b.py:make': cannot read"]),
        (f"{'x' * 10**5}.py:make", ["xxx': cannot read", "(File name too long)"]),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else "",
)
def test_what_is_not_there(spec: str, parts: list[str]) -> None:
    said = refused(spec)
    for part in parts:
        assert part in said


RAISES = [
    ("raise ValueError('one\\ntwo')", "ValueError (", "line 3): one"),
    ("raise ValueError", "ValueError (", "line 3)"),
    ("import torch; torch.zeros(2).view(3)", "RuntimeError (", "line 3): shape"),
    ("import sys; sys.exit(3)", "SystemExit (", "line 3): 3"),
    ("raise SystemExit", "SystemExit (", "line 3)"),
    ("import nowhere_to_be_found", "ModuleNotFoundError (", "line 3): No module named"),
    ("open('missing.pth')", "FileNotFoundError (", "line 3): [Errno 2]"),
]


@pytest.mark.parametrize(("line", "kind", "place"), RAISES)
@pytest.mark.parametrize("importing", [False, True])
@pytest.mark.parametrize("source", ["bad.py", "bad"])
def test_what_user_code_raises(
    line: str, kind: str, place: str, importing: bool, source: str
) -> None:
    body = f"\n\n{line}\n" if importing else f"\ndef make(**kwargs):\n    {line}\n"
    Path("bad.py").write_text(body)
    path = list(sys.path)
    state_dict: dict[str, Tensor] | None
    for state_dict in (None, {}):
        said = refused(f"{source}:make", {}, state_dict)
        assert said.startswith(
            f"{'importing ' if importing else ''}architecture '{source}:make' raised {kind}"
        )
        assert "bad.py" in said
        assert place in said
    assert sys.path == path


@pytest.mark.parametrize("content", [b"def make(:\n", b"\xff", b"a\0b", b"  x\n y\n"])
@pytest.mark.parametrize("source", ["bad.py", "bad"])
def test_files_that_are_no_python(content: bytes, source: str) -> None:
    Path("bad.py").write_bytes(content)
    assert "Error" in refused(f"{source}:make")
    Path("bad.py").write_text(NETS, encoding="utf-8")
    assert build(f"{source}:make")  # nothing half done is left


def test_arguments_that_do_not_fit() -> None:
    assert refused("nets.py:make", {"depth": 3}).startswith(
        "architecture 'nets.py:make' does not take {'depth': 3}: make() got an unexpected"
    )
    assert "does not take {}: background() missing 1 required" in refused("nets.py:background")


def test_pressing_ctrl_c_is_no_error_of_the_code() -> None:
    Path("bad.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    path = list(sys.path)
    with pytest.raises(KeyboardInterrupt):
        build("bad.py:make")
    assert sys.path == path


def test_tensors_without_memory_are_no_model() -> None:
    Path("bad.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(2, 3, device='meta')\n"
    )
    assert "Cannot copy out of meta tensor" in refused("bad.py:make")


# When it runs.


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        ("nets.py:make", True),
        ("/somewhere/nets.py:make", True),
        ("C:\\somewhere\\nets.py:make", True),
        ("package.module:make", True),
        ("os:system", True),
        ("nets.py", False),
        ("nets.py:", False),
        ("nets", False),
        ("", False),
        (":", False),
        ("a b:make", False),
        ("torchvision:nets.py:make", False),
        ("timm:nets.py:make", False),
        ("ibn:make", False),
        ("adaptkit:small_cnn", False),
    ],
)
def test_whose_code_runs(spec: str, runs: bool) -> None:
    assert runs_code(spec) is runs


def test_what_runs_no_code_does_not(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("open('ran', 'w').close()")
    found: dict[str, Tensor] = {}
    for spec in ("bad", "bad.py", "bad:", "bad.py:", "timm:bad.py:make", "torchvision:bad:make"):
        assert not runs_code(spec)
        with pytest.raises(CheckpointError, match="unknown architecture"):
            build(spec, {}, found)
    assert default_transform("bad.py:make") is None
    assert not (tmp_path / "ran").exists()
    refused("bad.py:make")
    assert (tmp_path / "ran").exists()
