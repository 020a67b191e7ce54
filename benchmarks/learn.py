"""Learn the guard's forecasts from `forecast.csv`: `python -m benchmarks.learn`."""

from pathlib import Path

import click
import numpy as np
import pandas as pd

import adaptkit.guard
from adaptkit.guard.forecast import file_of
from benchmarks.forecast import RESULT, learned_of


def main() -> None:
    """Write the forecasts that adaptkit comes with."""
    frame = pd.read_csv(RESULT)
    for calibrated in (False, True):
        path = Path(adaptkit.guard.__file__).parent / file_of(calibrated)
        np.savez_compressed(path, **vars(learned_of(frame, calibrated)))
        click.echo(f"Wrote {path}")


if __name__ == "__main__":
    main()
