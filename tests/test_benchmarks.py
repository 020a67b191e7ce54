"""What the benchmarks' pages say is what their CSV files hold."""

import pandas as pd

from benchmarks.__main__ import BENCHMARKS
from benchmarks.machine import described
from benchmarks.tables import PAGES, RESULTS, TABLES, as_markdown, filled

PARTIAL = {"decode"}  # a tenth of the full size, as their command says and the page


def test_the_pages_show_the_committed_results() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [filled(text) for text in texts] == texts, "run `python -m benchmarks.tables`"
    every = "".join(texts)
    assert all(f"<!-- table: {name} -->" in every for name in TABLES)


def test_committed_rows_say_what_and_where_they_are_of() -> None:
    files = sorted(RESULTS.glob("*.csv"))
    assert {path.stem for path in files} >= set(BENCHMARKS)
    for path in files:
        frame = pd.read_csv(path)
        assert {"case", "method", "architecture", "samples"} <= set(frame.columns), path
        name = path.stem.removesuffix("-avx2")
        if name not in PARTIAL:
            assert set(frame["command"]) == {f"python -m benchmarks {name}"}
        known = frame[[*described(), "case", "method", "architecture"]].notna()
        assert known.all(axis=None), path
        assert path.with_suffix(".png").exists() or name != path.stem


def test_tables_leave_the_unknown_empty() -> None:
    table = as_markdown(pd.DataFrame({"a": ["x", "y"], "b": [1.25, None]}))
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| x | 1.25 |", "| y |  |"]
