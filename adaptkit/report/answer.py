"""What a report comes to, in words: for the terminal and the top of the page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from adaptkit.report.domains import IMAGES
from adaptkit.report.guarded import domain_words, fit_words, guard_words, kept
from adaptkit.report.table import Report, Row

SURE = 0.05  # of a p-value
# Whole-set figures that a person reads: name, metric, factor, decimals.
_SHOWN = (
    ("accuracy, %", "accuracy", 100, 1),
    ("pixel accuracy, %", "pixel_accuracy", 100, 1),
    ("mean IoU, %", "mean_iou", 100, 1),
    ("balanced accuracy, %", "balanced_accuracy", 100, 1),
    ("macro-F1, %", "macro_f1", 100, 1),
    ("top-5 accuracy, %", "top5_accuracy", 100, 1),
    ("NLL, nats", "nll", 1, 3),
    ("Brier score", "brier", 1, 3),
    ("ECE, %", "ece", 100, 1),
    ("mean confidence, %", "confidence_mean", 100, 1),
    ("mean entropy, nats", "entropy_mean", 1, 3),
    ("symmetric KL, nats", "symmetric_kl", 1, 3),
)
COLUMNS = ("", "before", "after", "change", "95% interval", "p")


def figures_table(report: Report) -> pd.DataFrame:
    """Return the whole-set figures as text, each with the 95% interval of its change.

    >>> row = Row("accuracy", "all", 0.5, 0.75, 0.25, 0.125, 0.375, 0.0001, 8)
    >>> figures_table(Report((row,))).values.tolist()
    [['accuracy, %', '50.0', '75.0', '+25.0', '+12.5 to +37.5', '<0.001']]
    """
    rows = []
    for name, metric, factor, decimals in _SHOWN:
        row = report.row(metric)
        if row is not None and row.before is not None:
            rows.append((name, *_cells(row, factor, decimals)))
            if metric == "accuracy":
                rows += _own_intervals(report.details)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _own_intervals(details: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    found = details.get("accuracy_interval") or {}
    if found.get("before") and found.get("after"):
        own = (f"{100 * low:.1f}-{100 * high:.1f}" for low, high in map(found.get, _WHEN))
        yield ("  its 95% interval", *own, "", "", "")


_WHEN = ("before", "after")


def _cells(row: Row, factor: float, decimals: int) -> tuple[str, ...]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value * factor:{sign}.{decimals}f}"

    interval = ""
    if row.ci_low is not None:
        interval = f"{number(row.ci_low, '+')} to {number(row.ci_high, '+')}"
    figures = number(row.before), number(row.after), number(row.change, "+")
    return (*figures, interval, p_value(row.p_value))


def change_cells(row: Row) -> tuple[str, ...]:
    """Return a share's before, after, change, interval and p-value as text, in percent."""
    return _cells(row, 100, 1)


def p_value(p: float | None) -> str:
    """Return a p-value as a person reads it.

    >>> p_value(0.00001), p_value(0.25), p_value(None)
    ('<0.001', '0.250', '')
    """
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def feature_table(report: Report) -> pd.DataFrame:
    """Return how far the target's features lie from the source's, as text; empty without a source.

    The p-values are of "they are distributed as the source's".
    """
    found = [r for r in report.rows if r.scope.startswith(_FEATURE)]
    found = [r for r in found if r.scope.partition(".")[0] != IMAGES and r.metric in METRICS]
    return _distances(report, found, lambda r: METRICS[r.metric], "{:.3g}")


def image_table(report: Report) -> pd.DataFrame:
    """Return how far the images lie from the source's, as text; empty without a source."""
    found = [r for r in report.rows if r.metric == "input_shift" and r.before is not None]
    return _distances(report, found, lambda r: r.scope.rpartition(".")[2], "{:+.2f}")


def _distances(
    report: Report, rows: Sequence[Row], name: Callable[[Row], str], form: str
) -> pd.DataFrame:
    every = {(r.metric, r.scope): r for r in report.rows}
    found = []
    for row in rows:
        test = every.get((f"{row.metric}_p", row.scope))
        p = (test.before, test.after) if test else (None, None)
        figures = ("" if v is None else form.format(v) for v in (row.before, row.after))
        found.append((name(row), *figures, *map(p_value, p)))
    columns = ["against the source", "before", "after", "p before", "p after"]
    return pd.DataFrame(found, columns=columns)


_FEATURE = "feature:"
METRICS = {
    "mmd2": "MMD²",
    "energy": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Fréchet distance",
    "coral": "CORAL",
    "proxy_a_distance": "proxy A-distance",
    "c2st_auc": "classifier AUC",
    "ks_fraction": "features that differ (KS)",
}


def outcome(report: Report) -> list[str]:
    """Say what the figures mean, and what they cannot say: a sentence or two each."""
    accuracy = report.row("accuracy")
    if kept(report):
        return ["The guard kept the source model, so nothing changed."]
    if report.details.get("outputs", {}).get("kind") == "other":
        return ["Nothing says whether that helped: score both models on a few labelled images."]
    if accuracy is None or accuracy.change is None or accuracy.p_value is None:
        return [*_of_pixels(report)] or [
            "No labels, so the accuracy is not known. Confidence that rises and entropy that "
            "falls mostly go with a gain, but not always: score a few labelled images."
        ]
    points = f"{abs(accuracy.change) * 100:.1f} points"
    if accuracy.p_value >= SURE:
        said = f"The accuracy did not change beyond chance (n = {accuracy.n:,})."
    elif accuracy.change > 0:
        said = f"The accuracy rose by {points} (n = {accuracy.n:,})."
    else:
        said = f"The accuracy fell by {points} (n = {accuracy.n:,}): keep the source model."
    if report.details.get("method") == "adain":
        return [said, "Each image was restyled by itself; the weights are the source's."]
    if report.details.get("domains"):
        return [said, "Each image was routed to its own domain's statistics."]
    if report.details.get("transductive") is None:
        return [said, "The scored images are not among those that were adapted to."]
    return [
        said,
        "The scored images include those that were adapted to (without their labels); "
        "--holdout 0.5 keeps them apart.",
    ]


def _of_pixels(report: Report) -> Iterator[str]:
    row = report.row("mean_iou")
    if row is not None and row.before is not None and row.after is not None:
        points = 100 * (row.after - row.before)
        yield f"The mean intersection over union changed by {points:+.1f} points."


def headline(report: Report) -> str:
    """Say in a sentence or three what was done and what came of it."""
    return " ".join([*_done(report.details), *_gained(report)])


def _done(details: Mapping[str, Any]) -> Iterator[str]:
    samples = details.get("samples") or {}
    images, estimated = samples.get("images"), samples.get("estimated")
    if images is None:
        return
    if details.get("method") == "adain":
        yield f"Restyled {images:,} images to the source's, one by one (AdaIN)."
    elif details.get("domains"):
        yield f"Adapted to each of {len(details['domains'])} domains in {images:,} images."
    elif (details.get("guard") or {}).get("choice") == "source" and details["guard"]["followed"]:
        yield f"Kept the source's statistics on {images:,} images: the guard decided so."
    elif estimated is not None:
        layers = len((details.get("layers") or {}).get("adapted") or ())
        what = "1 norm layer" if layers == 1 else f"{layers} norm layers"
        yield f"Adapted {what} on {estimated:,} of {images:,} images, without labels."


def _gained(report: Report) -> Iterator[str]:
    kind = (report.details.get("outputs") or {}).get("kind")
    estimated = _pair(report, "accuracy_atc")
    if estimated:
        yield (
            f"Accuracy estimated from labelled source images: {100 * estimated[0]:.0f}% → "
            f"{100 * estimated[1]:.0f}% (a guess, not a measurement)."
        )
    for metric, word in (("accuracy", "accuracy"), ("mean_iou", "mean IoU")):
        measured, row = _pair(report, metric), report.row(metric)
        if measured and row:
            change = f"{100 * (measured[1] - measured[0]):+.1f} points"
            if row.ci_low is not None and row.ci_high is not None:
                change += f", 95% interval {100 * row.ci_low:+.1f} to {100 * row.ci_high:+.1f}"
            before, after = (f"{100 * value:.1f}%" for value in measured)
            yield f"Measured {word}: {before} → {after} ({change})."
            return
    if kind == "other":
        yield "Whether that helped is not known: what the model gives cannot be scored."
    elif not estimated:
        yield "Whether the accuracy rose is not known: there are no labels of the model's classes."


def _pair(report: Report, metric: str) -> tuple[float, float] | None:
    row = report.row(metric)
    if row is None or row.before is None or row.after is None:
        return None
    return row.before, row.after


def decision(report: Report) -> str:
    """Say what was decided and on what grounds."""
    arguments = report.details.get("arguments") or {}
    guard, fit = report.details.get("guard"), report.details.get("input_fit")
    fitted = [fit_words(fit)] if fit else []
    domains = report.details.get("domains")
    if domains:
        return "; ".join(map(str.strip, domain_words(domains)))
    if guard:
        return " ".join([*fitted, *guard_words(guard), *_by_labels(report, guard)])
    what = "The adapted model was written"
    if report.details.get("method") == "adain":
        what = "The source model was written with a transform that restyles its images"
    elif arguments.get("stats_only"):
        what = "The target's statistics were written"
    said = f"{what} as asked; nothing weighed it against the source model"
    change = _sure_change(report)
    if change is None:
        return f"{said}, and without labels no figure here proves it better."
    if not change:
        return f"{said}. By the labels the two are not told apart."
    return f"{said}. By the labels {'adapting' if change > 0 else 'the source'} is better."


def _by_labels(report: Report, guard: Mapping[str, Any]) -> Iterator[str]:
    change = _sure_change(report)
    if change is None or (guard["followed"] and guard["choice"] == "source"):
        return
    if not change:
        yield "By the labels adapting changed nothing beyond chance."
    else:
        yield f"By the labels {'adapting' if change > 0 else 'the source'} is better."


def _sure_change(report: Report) -> float | None:
    """Return by how much the labels say it changed, 0 where that may be chance, None without."""
    accuracy, iou = report.row("accuracy"), report.row("mean_iou")
    if accuracy is not None and accuracy.change is not None and accuracy.p_value is not None:
        return accuracy.change if accuracy.p_value < SURE else 0.0
    if iou is not None and iou.change is not None and None not in (iou.ci_low, iou.ci_high):
        sure = not (iou.ci_low or 0.0) <= 0 <= (iou.ci_high or 0.0)
        return iou.change if sure else 0.0
    return None
