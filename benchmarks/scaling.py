"""How one target scales with the processes that torchrun joins, and what its cost is made of."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd

from adaptkit.plotting import new_figure
from benchmarks import figures, photographs
from benchmarks.fresh import in_fresh_job
from benchmarks.machine import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

WORK = ("exact", "stream", "evaluate")  # methods that are of work on a target
_BYTES = ("bytes all-reduced", "bytes handed", "bytes a sample")
_WHOLE = ("samples", "operations", "all-reduces", *_BYTES, "visits")
_KEYS = ["case", "architecture", "method"]


def run(quick: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time jobs of 1, 2 and 4 processes on the CPU, in turn.

    Raises:
        RuntimeError: a job finds other statistics than one process did.
    """
    counts, rounds = ((1, 2), 1) if quick else ((1, 2, 4), 3)
    files, names = (32, 2_000) if quick else (384, 20_000)
    rows = []
    expected: dict[str, np.ndarray] = {}
    with TemporaryDirectory() as place:
        folder = Path(place)
        for side in (224, 427):
            photographs.write(folder / f"photographs-{side}", files, side)
        _many(folder / "many", folder / "photographs-224" / "000000.jpg", names)
        for number in range(1, rounds + 1):
            for count in counts:
                quickly = ["--quick"] if quick else []
                found = in_fresh_job(count, "benchmarks.scaling_job", folder, *quickly)
                apart = _apart(folder, expected)
                for place_of, row in enumerate(found):
                    difference = apart.get(f"found-{place_of}")
                    rows.append(_row(row, count, number, difference))
                    _check(rows[-1])
                click.echo(f"round {number} of {count} processes is done", err=True)
    frame = pd.DataFrame(rows)
    whole = [name for name in frame.columns if name in _WHOLE]
    frame = frame.astype(dict.fromkeys(whole, "Int64"))  # to the last digit, also beside unknowns
    frame = frame.assign(**described()).assign(device="cpu", threads="1")
    return frame, summary(frame)


def _many(folder: Path, file: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        os.link(file, folder / f"{number:09}.jpg")


def _apart(folder: Path, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far what a job found lies from what the first one did, by the files' names."""
    apart = {}
    for path in sorted(folder.glob("found-*.npy")):
        found = np.load(path)
        path.unlink()
        expected.setdefault(path.stem, found)
        apart[path.stem] = difference(found, expected[path.stem])
    return apart


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a mean or a standard deviation, in standard deviations."""
    return float((np.abs(found - expected) / expected[1]).max())


def _row(row: Row, processes: int, number: int, apart: float | None) -> Row:
    what = {"case": row["case"], "architecture": row.get("architecture", "any")}
    what |= {"method": row["method"], "processes": processes, "round": number}
    more = {"samples": None, "seconds": None, **row, **what}
    return {**what, **more, "largest difference": apart}


def _check(row: Row) -> None:
    apart = row["largest difference"]
    if row["method"] == "exact" and not apart <= row["agree"]:  # NaN too
        raise RuntimeError(
            f"{row['case']}: {row['processes']} processes found statistics {apart:.1e} deviations "
            f"apart"
        )


def medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a thing measured and number of processes: the medians over rounds."""
    measures = [name for name in frame.columns if frame[name].dtype.kind in "fi"]
    measures = [name for name in measures if name not in ("processes", "round")]
    return frame.groupby([*_KEYS, "processes"], sort=False)[measures].median().reset_index()


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a case and number of processes, from the medians over rounds.

    Efficiency is the speed, one process being 1, over the cores that the processes can have.
    """
    of_work = frame[frame["method"].isin(WORK)]
    together = of_work.groupby(_KEYS, sort=False).ngroup().sort_values(kind="stable").index
    of_work = of_work.loc[together]  # case by case
    table = medians(of_work)
    cores = int(frame["cores"].iloc[0])
    speed = _speed(table)
    found = table[[*_KEYS, "processes"]].copy()
    found["seconds"] = table["seconds"].round(2)
    found["images per second"] = (table["samples"] / table["seconds"]).round(1)
    found["speed, 1 process = 1"] = speed.round(2)
    found["efficiency"] = (speed / table["processes"].clip(upper=cores)).round(2)
    found["collectives"] = table["operations"].astype(int)
    found["kB handed over"] = (table["bytes handed"] / 1e3).round(1)
    found["waiting, %"] = table["waiting %"].round(1)
    apart = of_work.groupby([*_KEYS, "processes"], sort=False)["largest difference"].max()
    found["largest difference"] = apart.to_numpy()
    return found


def _speed(table: pd.DataFrame) -> "pd.Series[float]":
    """Return the speed of each row, one process on the same case being 1."""
    alone = table.loc[table["processes"] == 1, [*_KEYS, "seconds"]]
    both = table[_KEYS].merge(alone, on=_KEYS, how="left")
    return pd.Series(both["seconds"].to_numpy(float) / table["seconds"].to_numpy(float))


def figure(frame: pd.DataFrame) -> "Figure":
    """Draw the speed, one process being 1, and the time of an all-reduce.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    drawn = new_figure(11, 5.5)
    axes, latency = drawn.subplots(1, 2)
    table = medians(frame)
    work = table[table["method"].isin(WORK)].reset_index(drop=True)
    work = work.assign(speed=_speed(work))
    counts = sorted(work["processes"].unique())
    cores = int(frame["cores"].iloc[0])
    axes.plot(counts, counts, "--", color="grey", label="ideal")
    axes.axvline(cores, linestyle=":", color="black", label=f"cores of this machine: {cores}")
    for number, (keys, part) in enumerate(work.groupby(_KEYS, sort=False)):
        case, architecture, method = keys
        name = f"{method}, {architecture}, {case}"
        axes.plot(part["processes"], part["speed"], label=name, **figures.style(number))
    axes.set(xlabel="processes", ylabel="speed, one process = 1", title="one target")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    sums = table[table["method"] == "all-reduce"]
    for number, (count, part) in enumerate(sums.groupby("processes", sort=False)):
        kilobytes, microseconds = part["bytes handed"] / 1e3, part["seconds"] * 1e6
        label = f"{count} processes"
        latency.plot(kilobytes, microseconds, label=label, **figures.style(number))
    latency.set(xlabel="kB: 64 to 2,048 channels", ylabel="µs (median)", title="one all-reduce")
    latency.set(xscale="log", yscale="log")
    latency.legend()
    for one in (axes, latency):
        one.grid(alpha=0.3)
    figures.legend_below(drawn, axes, 2)
    return drawn
