"""Bring README.md's tables up to date with the CSV files: `python -m benchmarks.tables`."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks import profile, throughput

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown; what is missing is empty."""
    rows = [
        [("" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v)) for v in row]
        for row in frame.itertuples(index=False)
    ]
    lines = [[*map(str, frame.columns)], ["---"] * len(frame.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _memory(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["mode", "model", "limit MiB", "samples", "seconds", "peak MiB"]]


def _precision(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[:, :"images"]


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "throughput": throughput.summary,
    "warm": throughput.summary,
    "profile": profile.summary,
    "memory": _memory,
    "precision": _precision,
}


def filled(text: str) -> str:
    """Return a page with each place marked ``<!-- table: NAME -->`` filled from NAME.csv."""

    def table(place: re.Match[str]) -> str:
        frame = pd.read_csv(RESULTS / f"{place[2]}.csv")
        return f"{place[1]}{as_markdown(TABLES[place[2]](frame))}\n{place[3]}"

    return _PLACE.sub(table, text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
