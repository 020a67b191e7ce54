"""The command as a whole: help, version, and how it ends."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import adaptkit
from cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_is_documented_and_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help
        assert f"adaptkit {name}" in README
        for option in command.params:
            if isinstance(option, click.Argument):
                continue
            assert isinstance(option, click.Option)
            assert option.help, f"{name} {option.name}"
        result = CliRunner().invoke(main, [name, "--help"], terminal_width=80)
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80


def test_no_arguments_is_help_and_version_is_ours() -> None:
    bare = CliRunner().invoke(main, [])
    assert bare.exit_code == 0
    assert "adaptkit adapt --source model.pt" in bare.output
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"adaptkit, version {adaptkit.__version__}\n"


@pytest.mark.parametrize("line", [["adapted"], ["adapt", "--sorce", "x"], ["demo", "extra"]])
def test_usage_errors_are_one_line(line: list[str]) -> None:
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_python_m_cli_from_the_root() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "cli", "adapt", "--source", "no.pt", "--target", "no"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "Error: there is no checkpoint no.pt\n"
