"""What the benchmarks' page says is what their CSV files hold."""

import pandas as pd

from benchmarks.__main__ import BENCHMARKS
from benchmarks.machine import described
from benchmarks.tables import README, RESULTS, TABLES, as_markdown, filled


def test_the_page_shows_the_committed_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run `python -m benchmarks.tables`"
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)


def test_committed_rows_say_what_and_where_they_are_of() -> None:
    files = sorted(RESULTS.glob("*.csv"))
    assert {path.stem for path in files} >= set(BENCHMARKS)
    for path in files:
        frame = pd.read_csv(path)
        assert {"case", "method", "architecture", "samples"} <= set(frame.columns), path
        name = path.stem.removesuffix("-avx2")
        assert set(frame["command"]) == {f"python -m benchmarks {name}"}
        known = frame[[*described(), "case", "method", "architecture"]].notna()
        assert known.all(axis=None), path
        assert path.with_suffix(".png").exists() or name != path.stem


def test_tables_leave_the_unknown_empty() -> None:
    table = as_markdown(pd.DataFrame({"a": ["x", "y"], "b": [1.25, None]}))
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| x | 1.25 |", "| y |  |"]
