"""Bring README.md's tables up to date with the CSV files: `python -m benchmarks.tables`."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks import norm_tables, profile, throughput

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


# Name of a table -> the CSV file that it comes from, and how.
TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "throughput": ("throughput", throughput.summary),
    "warm": ("warm", throughput.summary),
    "profile": ("profile", profile.summary),
    "memory": ("memory", _memory),
    "precision": ("precision", _precision),
    "norms": ("norms", norm_tables.summary),
    "norms-jacobians": ("norms", norm_tables.jacobians),
    "norms-conditions": ("norms", norm_tables.by_condition),
    "norms-corruptions": ("norms", norm_tables.by_corruption),
}


def filled(text: str) -> str:
    """Return a page with each place marked ``<!-- table: NAME -->`` filled from its CSV file."""

    def table(place: re.Match[str]) -> str:
        file, made = TABLES[place[2]]
        frame = pd.read_csv(RESULTS / f"{file}.csv")
        return f"{place[1]}{as_markdown(made(frame))}\n{place[3]}"

    return _PLACE.sub(table, text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
