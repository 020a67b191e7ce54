"""What the benchmarks' page says is what their CSV files hold."""

import pandas as pd

from benchmarks.tables import README, TABLES, as_markdown, filled


def test_the_page_shows_the_committed_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run `python -m benchmarks.tables`"
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)


def test_tables_leave_the_unknown_empty() -> None:
    table = as_markdown(pd.DataFrame({"a": ["x", "y"], "b": [1.25, None]}))
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| x | 1.25 |", "| y |  |"]
