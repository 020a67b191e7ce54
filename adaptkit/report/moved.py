"""Which layers see another world, in words."""

import numpy as np

from adaptkit.estimation import Statistics
from adaptkit.report.table import Report

_NAMED = 3
_BEYOND = 3.0  # times what sampling alone would give
_LEAST = 0.01  # nats; running averages of training lie as far from their own domain


def moved_layers(report: Report, statistics: Statistics) -> dict[str, float]:
    """Return the layers that moved, the farthest first: name -> symmetric KL in nats.

    A layer counts if its symmetric KL divergence is more than three times what sampling alone
    gives, about the mean over channels of (se(mean) / σ)² + se(log σ²)² / 2, and more than 0.01
    nats: the averages that training left in a model differ from its own domain too. None counts
    for a single image, whose sampling error is not known.
    """
    found: dict[str, float] = {}
    if statistics.samples < 2:
        return found
    for name, moments in statistics.items():
        row = report.row("symmetric_kl", f"layer:{name}")
        if row is None or row.before is None:
            continue
        of_mean, of_log_variance = (error.cpu().numpy() for error in moments.standard_error())
        variance = moments.variance().cpu().numpy()
        ratio = np.divide(of_mean**2, variance, out=np.zeros_like(variance), where=variance > 0)
        noise = np.nan_to_num(ratio + of_log_variance**2 / 2).mean()
        if row.before > max(_BEYOND * noise, _LEAST):
            found[name] = row.before
    return _ranked(found)


def verdict(report: Report, statistics: Statistics, of: str = "images") -> str:
    """Say how much of the model moved and where most; `of` is "images" or "samples"."""
    layers, seen = len(statistics), f"{statistics.samples:,} {of}"
    if statistics.samples < 2:
        every = {name: _before(report, "symmetric_kl", name) for name in statistics}
        return (
            f"A single {of[:-1]} cannot tell another domain from chance. The layers that it "
            f"differs in most: {_first(report, _ranked(every))}."
        )
    moved = moved_layers(report, statistics)
    if not moved:
        return (
            f"No layer of {layers} sees anything that differs from the source domain by more than "
            f"chance would have it for {seen}, or by more than running averages do."
        )
    return (
        f"{len(moved)} of {layers} norm layers see another domain than the model was trained on "
        f"(beyond chance for {seen}). Those that moved most: {_first(report, moved)}."
    )


def _ranked(layers: dict[str, float]) -> dict[str, float]:
    return dict(sorted(layers.items(), key=lambda item: -item[1]))


def _first(report: Report, layers: dict[str, float]) -> str:
    return "; ".join(f"{name} ({_words(report, name)})" for name in [*layers][:_NAMED])


def _words(report: Report, name: str) -> str:
    parts = [f"symmetric KL {_before(report, 'symmetric_kl', name):.3g} nats"]
    parts.append(f"means by {_before(report, 'mean_shift', name):.2g} sd")
    parts.append(f"log-variances by {_before(report, 'log_var_shift', name):.2g}")
    return ", ".join(parts)


def _before(report: Report, metric: str, name: str) -> float:
    row = report.row(metric, f"layer:{name}")
    return float("nan") if row is None or row.before is None else row.before
