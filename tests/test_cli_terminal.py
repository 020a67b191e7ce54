"""What a terminal shows while a command runs; `--json` is tested beside each command."""

import io
import re
import sys

import pytest
from rich.console import Console

from cli import terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to a stderr that is a terminal of 80 columns."""
    written = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(
        terminal,
        "Console",
        lambda **_: Console(file=written, force_terminal=True, width=80, color_system=None),
    )
    return written


def test_each_stage_has_a_bar_with_its_rate_and_the_time_left(shown: io.StringIO) -> None:
    with terminal.progress(quiet=False) as report:
        assert report is not None
        for done in range(0, 20_001, 4_000):
            report("before", done, 20_312)
        report("estimating", 3, 53)
        report("streaming", 512, None)
        report("something new", 1, 2)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    lines = [line for line in re.split(r"[\r\n]", text) if line]
    assert max(map(len, lines)) <= 80
    last = {line[:33].strip(): line for line in lines}
    scored = last["Scoring the source model"]
    assert re.search(r"20000/20312 +\d+/s 0:00:0\d", scored), scored
    assert "3/53" in last["Estimating, layers"]
    assert "512/?" in last["Estimating, samples"]
    assert "1/2" in last["something new"]


def test_nothing_is_shown_where_it_would_not_be_seen(shown: io.StringIO) -> None:
    with terminal.progress(quiet=True) as report:
        assert report is None
    assert not shown.getvalue()


def test_nothing_is_shown_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with terminal.progress(quiet=False) as report:
        assert report is None
