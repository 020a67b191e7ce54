"""Bring the pages' tables up to date with the CSV files: `python -m benchmarks.tables`."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks import (
    corruptions,
    cost,
    decode,
    domains,
    exactness,
    forecast,
    guard,
    label_shift,
    mixtures,
    norm_tables,
    precision,
    profile,
    scaling,
    scaling_model,
    startup,
    target_size,
    throughput,
    transfer,
)

README = Path(__file__).parent / "README.md"
PAGES = (README, Path(__file__).parent.parent / "docs" / "scaling.md")
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
    return frame[["method", "architecture", "limit MiB", "samples", "seconds", "peak MiB"]]


# Name of a table -> the CSV file that it comes from, and how.
TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "transfer": ("transfer", transfer.seeds),
    "transfer-digits-to-mnist": ("transfer", transfer.summary_of("digits to MNIST")),
    "transfer-digits-to-cropped": ("transfer", transfer.summary_of("digits to cropped MNIST")),
    "transfer-cropped-to-digits": ("transfer", transfer.summary_of("cropped MNIST to digits")),
    "transfer-mnist-to-digits": ("transfer", transfer.summary_of("MNIST to digits")),
    "corruptions": ("corruptions", corruptions.summary),
    "corruptions-severities": ("corruptions", corruptions.by_severity),
    "corruptions-each": ("corruptions", corruptions.by_corruption),
    "label-shift": ("label-shift", label_shift.summary),
    "label-shift-clean": ("label-shift", label_shift.on_clean),
    "forecast": ("forecast", forecast.summary),
    "forecast-bound": ("forecast", forecast.bound),
    "guard": ("guard", guard.summary),
    "guard-images": ("guard", guard.by_images),
    "guard-harmed": ("guard", guard.harmed),
    "mixtures": ("mixtures", mixtures.summary),
    "exactness": ("exactness", exactness.summary),
    "exactness-errors": ("exactness", exactness.errors),
    "target-size": ("target-size", target_size.summary),
    "target-size-targets": ("target-size", target_size.by_target),
    "target-size-errors": ("target-size", target_size.errors),
    "transfer-no-gain": ("transfer", transfer.no_gain),
    "corruptions-no-gain": ("corruptions", corruptions.no_gain),
    "label-shift-no-gain": ("label-shift", label_shift.no_gain),
    "mixtures-no-gain": ("mixtures", mixtures.no_gain),
    "cost": ("cost", cost.summary),
    "decode": ("decode", decode.summary),
    "decode-agreement": ("decode", decode.agreements),
    "domains": ("domains", domains.summary),
    "scaling": ("scaling", scaling.summary),
    "scaling-measured": ("scaling", scaling_model.measured_table),
    "scaling-assumed": ("scaling", scaling_model.assumed_table),
    "scaling-worked": ("scaling", scaling_model.worked),
    "scaling-by-gpus": ("scaling", scaling_model.by_gpus),
    "scaling-check": ("scaling", scaling_model.check),
    "throughput": ("throughput", throughput.summary),
    "warm": ("warm", throughput.summary),
    "profile": ("profile", profile.summary),
    "memory": ("memory", _memory),
    "precision": ("precision", precision.summary),
    "startup": ("startup", startup.summary),
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
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
