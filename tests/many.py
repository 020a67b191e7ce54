"""Domains of a few digits each, the command on all of them, and what it left."""

import json
import re
from pathlib import Path
from typing import Any

import digits
import pandas as pd
from click.testing import CliRunner, Result

from cli import main

CLASSES = [str(k) for k in range(10)]
EACH = 40


def write_domain(folder: Path, contrast: float, start: int, *, labels: bool = True) -> None:
    """Write digits that the net has not seen, of some contrast."""
    x, y = digits.images()
    first = digits.TRAINED_ON + start
    for i in range(first, first + EACH):
        where = folder / str(int(y[i])) if labels else folder
        digits.write(where / f"{i}.png", contrast * x[i])


def adapt(*args: str, target: str = "domains", source: str = "source.pt") -> Result:
    line = ["adapt", "--source", source, "--target", target, "--domains", "folder"]
    return CliRunner().invoke(main, [*line, "--device", "cpu", *args])


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def fails(message: str, *args: str, target: str = "domains", source: str = "source.pt") -> None:
    """Hold a run to one line on stderr and an untouched folder."""
    before = files(), {*Path().rglob("*")}
    result = adapt(*args, target=target, source=source)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not result.stdout
    assert (files(), {*Path().rglob("*")}) == before


def results(folder: str = "source-domains") -> dict[str, Any]:
    """Packs as bytes, and all that the other files say but for seconds and the run's own line."""
    found: dict[str, Any] = {}
    for path in Path(folder).rglob("*.*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            text = re.sub(r'"seconds": [\d.]+', '"seconds": 0', path.read_text(encoding="utf-8"))
            content = json.loads(text)
            found[name] = {**content, "command": "", "arguments": {}, "processes": 0}
        elif path.suffix == ".csv":
            found[name] = pd.read_csv(path).drop(columns="seconds").to_csv()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def rows(folder: str = "source-domains") -> dict[str, dict[str, Any]]:
    summary = json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))
    return {row["domain"]: row for row in summary["rows"]}
