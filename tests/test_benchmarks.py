"""What the benchmarks' pages say is what their CSV files hold."""

import pandas as pd
import pytest

from benchmarks import startup
from benchmarks.__main__ import BENCHMARKS
from benchmarks.machine import described
from benchmarks.tables import PAGES, RESULTS, TABLES, as_markdown, filled

PARTIAL = {"decode"}  # one round, agreement on fewer images, as its commands and the page say


@pytest.mark.slow
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


def test_starts_are_relative_to_a_bare_import_and_listings_to_nothing() -> None:
    seconds = {startup.IMPORTS: (2, 4, 3), startup.ADAPT: (4, 9, 6), "listing": (1, 1, 1)}
    rows = [
        {
            "case": "flat" if method == "listing" else startup.START,
            "method": method,
            "architecture": "none",
            "samples": 0,
            "seconds": value,
            "processor s": value / 2,
        }
        for method, values in seconds.items()
        for value in values
    ]
    found = startup.summary(pd.DataFrame(rows)).set_index("method")
    assert found["seconds"].to_dict() == {startup.IMPORTS: 3, startup.ADAPT: 6, "listing": 1}
    for column in ("seconds, import = 1", "processor s, import = 1"):
        assert found[column].dropna().to_dict() == {startup.IMPORTS: 1, startup.ADAPT: 2}
