"""Which layers see another world, in words."""

import numpy as np

from adaptkit.estimation import Statistics
from adaptkit.report.table import Report

_NAMED = 3
_BEYOND = 3.0  # times what sampling alone would give


def moved_layers(report: Report, statistics: Statistics) -> dict[str, float]:
    """Return the layers that moved, the farthest first: name -> symmetric KL in nats.

    A layer counts if its symmetric KL divergence is more than three times what sampling alone
    gives: about the mean over channels of (se(mean) / σ)² + se(log σ²)² / 2.
    """
    found = {}
    for name, moments in statistics.items():
        row = report.row("symmetric_kl", f"layer:{name}")
        if row is None or row.before is None:
            continue
        of_mean, of_log_variance = (error.cpu().numpy() for error in moments.standard_error())
        variance = moments.variance().cpu().numpy()
        ratio = np.divide(of_mean**2, variance, out=np.zeros_like(variance), where=variance > 0)
        noise = np.nan_to_num(ratio + of_log_variance**2 / 2).mean()
        if row.before > _BEYOND * noise:
            found[name] = row.before
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def verdict(report: Report, statistics: Statistics) -> str:
    """Say how much of the model moved and where most."""
    layers, images = len(statistics), f"{statistics.samples:,} images"
    moved = moved_layers(report, statistics)
    if not moved:
        return (
            f"No layer of {layers} sees anything that differs from the source domain by more than "
            f"chance would have it for {images}."
        )
    first = [f"{name} ({_words(report, name)})" for name in [*moved][:_NAMED]]
    return (
        f"{len(moved)} of {layers} norm layers see another domain than the model was trained on "
        f"(beyond chance for {images}). Those that moved most: {'; '.join(first)}."
    )


def _words(report: Report, name: str) -> str:
    parts = [f"symmetric KL {_before(report, 'symmetric_kl', name):.3g} nats"]
    parts.append(f"means by {_before(report, 'mean_shift', name):.2g} sd")
    parts.append(f"log-variances by {_before(report, 'log_var_shift', name):.2g}")
    return ", ".join(parts)


def _before(report: Report, metric: str, name: str) -> float:
    row = report.row(metric, f"layer:{name}")
    return float("nan") if row is None or row.before is None else row.before
