"""Every example of the README is run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


class TwoInputs(nn.Module):
    """A model that the README's `forward=` example is for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.norm(left + right)
        return out


def lit_model() -> Any:
    """Return what the README's example of the Lightning callback is for."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

        def test_step(self, batch: Tensor, batch_idx: int) -> None:
            self(batch)

    return Classifier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    result = CliRunner().invoke(main, ["demo", "--out", str(folder / "adaptkit-demo"), "--quiet"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\):FutureWarning")
def test_the_python_examples_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    batches = [{"left": torch.randn(4, 2), "right": torch.randn(4, 2)}]
    names: dict[str, object] = {"model": TwoInputs(), "batches": batches}
    names |= {"lit_model": lit_model(), "target_loader": DataLoader(torch.randn(20, 2))}  # type: ignore[arg-type]
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert re.match(r"\d\d\.\d% -> \d\d\.\d%\n", capsys.readouterr().out)
    assert (folder / "report.csv").exists()
    assert (folder / "report.html").exists()
    assert (folder / "adapted.pt").exists()


def forced(line: str) -> list[str]:
    """Let a command that writes replace what another example wrote."""
    return [] if shlex.split(line)[1] == "inspect" else ["--force"]


def test_the_command_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = [
        line[2:]
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ adaptkit ")
    ]
    assert lines
    for line in lines:
        result = CliRunner().invoke(main, [*shlex.split(line)[1:], *forced(line)])
        assert result.exit_code == 0, result.output


def test_the_picture_shows_what_the_command_prints(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits may differ between machines; the words and the form may not."""
    monkeypatch.chdir(folder)
    picture = blocks("console")[0]
    command, _, shown = picture.partition("\n")
    result = CliRunner().invoke(main, [*shlex.split(command)[2:], "--force"])

    def shape(text: str) -> list[str]:
        lines = [re.sub(r"[-+<]?\d[\d.,]*", "#", line).split() for line in text.splitlines()]
        return [" ".join(words) for words in lines if words]

    assert shape(shown) == shape(result.stdout)


def test_there_is_one_line_to_try_and_one_to_test() -> None:
    assert [len(block.splitlines()) for block in blocks("sh")] == [1, 1]
    for title, block in zip(("## Try it", "## Test it"), blocks("sh"), strict=True):
        assert README.index(title) < README.index(block)
