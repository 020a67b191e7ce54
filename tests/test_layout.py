"""The picture that design.md draws, held against the code."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adaptkit

ROOT = Path(__file__).parent.parent

# What a part may import of ours, beside itself. `estimation` stands for the whole folder.
MAY_IMPORT = {
    "errors": set(),
    "moments": set(),
    "layers": {"errors", "norms"},
    "models": {"errors", "layers"},
    "diagnostics": {"batches", "errors", "moments", "norms", "plotting"},
    "plotting": {"errors"},
    "paired": set(),
    "transform": {"errors", "layers"},
    "files": {"errors"},
    "partial": {"errors", "files"},
    "device": {"errors"},
    "free": set(),
    "heap": set(),
    "batches": {"errors"},
    "norms": {"distributed", "errors"},
    "shift": {"errors"},
    "data": {"batches", "errors", "free", "launched", "transform"},
    "fingerprints": set(),
    "recognition": {"architectures", "errors", "fingerprints"},
    "architectures": {"errors", "models", "transform"},
    "checkpoint": {
        "errors",
        "architectures",
        "distributed",
        "exact",
        "files",
        "guard",
        "layers",
        "norms",
        "program",
        "recognition",
        "transform",
    },
    "exact": set(),
    "program": {"errors", "exact"},
    "loaders": set(),
    "launched": set(),
    "distributed": {"errors", "launched", "loaders"},
    "estimation": {
        "__init__",
        "batches",
        "device",
        "distributed",
        "errors",
        "features",
        "files",
        "free",
        "heap",
        "loaders",
        "moments",
        "norms",
        "partial",
    },
    "domains": {"batches", "distributed", "errors", "estimation", "loaders", "moments", "norms"},
    "input_fit": {"batches", "distributed", "errors", "moments", "norms"},
    "guard": {
        "batches",
        "distributed",
        "errors",
        "estimation",
        "evaluation",
        "features",
        "moments",
        "norms",
    },
    "adaptation": {
        "batches",
        "device",
        "distributed",
        "errors",
        "estimation",
        "guard",
        "moments",
        "norms",
    },
    "evaluation": {"errors", "batches", "device", "distributed", "heap", "norms", "paired"},
    "features": {"errors", "batches", "distributed", "heap", "norms"},
    "calibration": set(),
    "quality": {"calibration", "errors", "evaluation"},
    "label_shift": {"errors", "evaluation", "shift"},
    "dense": {"errors", "batches", "distributed", "heap", "norms"},
    "report": {
        "calibration",
        "dense",
        "errors",
        "estimation",
        "evaluation",
        "files",
        "norms",
        "paired",
        "plotting",
        "quality",
        "shift",
    },
}
COMPOSITION = {"__init__", "pipeline", "demo", "integrations"}


def parts() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "adaptkit").rglob("*.py")):
        yield path.relative_to(ROOT / "adaptkit").parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import in the library"
            assert node.module
            if node.module == "adaptkit":
                yield from (f"adaptkit.{alias.name}" for alias in node.names)
            yield node.module


@pytest.mark.parametrize(("part", "path"), list(parts()), ids=lambda v: getattr(v, "stem", v))
def test_imports_flow_one_way(part: str, path: Path) -> None:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("adaptkit.")}
    ours -= {part, "__version__"}
    assert not [name for name in imports(path) if name.split(".")[0] in ("cli", "benchmarks")]
    assert "integrations" not in ours, "they are for the user alone, who has the other library"
    if part not in COMPOSITION:
        assert part in MAY_IMPORT, f"a new part, {part}: say in this test what it may import"
        assert ours <= MAY_IMPORT[part]


def test_the_packages_are_listed_as_they_lie_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "adaptkit").rglob("*.py")}
    on_disk = {".".join(folder.parts) for folder in folders} | {"adaptkit.cli"}
    assert len(listed) == len(set(listed))
    assert set(listed) == on_disk


def test_data_is_there_without_its_own_import() -> None:
    assert adaptkit.__getattr__("data").open.__doc__


def test_the_public_names_exist_and_are_sorted() -> None:
    assert sorted(adaptkit.__all__) == adaptkit.__all__
    for name in adaptkit.__all__:
        thing = getattr(adaptkit, name)
        assert thing.__doc__, f"adaptkit.{name} has no docstring"
        assert callable(thing), f"adaptkit.{name} is hidden by a module of that name"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adaptkit.nothing


@pytest.mark.parametrize(
    "code",
    [
        "import adaptkit; adaptkit.AdaptkitError",
        "from cli import main; main(['--help'], standalone_mode=False)",
        "from cli import main; main(['adapt', '--help'], standalone_mode=False)",
        "from cli import main; main(['demo', '--help'], standalone_mode=False)",
    ],
)
def test_help_needs_no_torch(code: str) -> None:
    check = "import sys; heavy = {'torch', 'numpy', 'pandas', 'sklearn'} & set(sys.modules)"
    program = f"{code}\n{check}\nassert not heavy, heavy"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
