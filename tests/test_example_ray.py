"""The Ray recipe: on a Ray of its own it finds what one process finds."""

import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import digits
import pytest
import torch

import adaptkit
from adaptkit.norms import norm_layers, read

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "ray_adapt.py"


def test_the_help_tells_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    if find_spec("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", MagicMock())
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    told = re.findall(r"^  (--[a-z]+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert told == ["--source", "--target", "--out", "--exact", "--partition"]
    in_the_text = set(re.findall(r" (--[a-z]+)", SCRIPT.read_text(encoding="utf-8")))
    assert in_the_text <= set(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    digits.save(folder / "source.pt", [str(label) for label in range(10)])
    images, _ = digits.images()
    for number, image in enumerate(images[digits.TRAINED_ON :][:241]):
        digits.write(folder / "target" / f"{number:04}.png", 0.5 + 0.6 * (image - 0.5))
    return folder


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Yield a folder for Ray's files, by which its processes are known; sockets need a short path.

    In the end no process of it is left.
    """
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield Path(folder)
        left = [
            line
            for process in Path("/proc").glob("[0-9]*")
            if folder in (line := command_line(process))
        ]
        assert not left


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:  # ended in the meantime
        return ""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize(("options", "close"), [(["--exact"], 1e-6), ([], 0.1)])
def test_it_finds_what_one_process_finds(
    folder: Path, ray_folder: Path, options: list[str], close: float
) -> None:
    """To rounding with --exact; within a tenth of a standard deviation in partitions of 60."""
    out = ray_folder / "out.pt"
    arguments = ["--source", "source.pt", "--target", "target", "--out", str(out), *options]
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--partition", "60"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert run.stdout == f"{out}: 4 norm layers, adapted to 241 images\n"
    source = adaptkit.load_checkpoint(folder / "source.pt")
    loader = adaptkit.image_folder(folder / "target", transform=source.transform)
    expected = adaptkit.estimate(source.model, loader, samples="all")
    layers = norm_layers(adaptkit.load_checkpoint(out).model)
    worst = 0.0
    for name, moments in expected.items():
        found, variance = read(layers[name]), moments.variance()
        mean_error = (found.mean - moments.mean).abs() / variance.sqrt()
        log_error = (found.variance.double() / variance).log().abs()
        worst = max(worst, float(torch.cat([mean_error, log_error]).max()))
    assert worst < close
    assert (worst > 1e-4) is (options == [])  # an approximation that is said to be one
