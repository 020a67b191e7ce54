"""What the guard chose and why, in words and figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from adaptkit.report.table import Report
from adaptkit.report.wording import told

CHOICES = {
    "source": "the source's statistics",
    "full": "the target's statistics in every layer (AdaBN)",
    "early": "the target's statistics in the early layers, each predicted class counting alike",
    "balanced": "the target's statistics, each predicted class counting alike",
    "corrected": "the target's statistics, corrected for its mix of classes",
}

FIGURES = {
    "severity": "severity of the shift, classes aside",
    "severity_typical": "severity up to which images are typical",
    "distance_source": "features' distance to the classes, source's statistics",
    "distance_full": "features' distance to the classes, AdaBN",
    "distance_corrected": "features' distance to the classes, corrected",
    "map_explained": "of the mean image, explained by the classes'",
    "map_gain": "contrast of the mean image against the source's",
    "effective_classes": "classes in the target, effectively",
    "effective_classes_full": "classes that AdaBN predicts, effectively",
    "full_agrees_with_early": "predictions alike, all layers adapted and early ones",
    "source_agrees": "predictions alike, source and all layers adapted",
    "forecast_all": "forecast change of accuracy, all layers adapted",
    "forecast_early": "forecast change of accuracy, early layers adapted",
    "forecast_corrected": "forecast change of accuracy, corrected for the mix of classes",
    "forecast_spread": "the spread of that forecast",
}
_SHARES_SHOWN = 5
_LEAST_SHOWN = 0.01


def keeps_statistics(report: Report) -> bool:
    """Whether the guard kept the source's statistics."""
    guard = report.details.get("guard") or {}
    return guard.get("choice") == "source" and bool(guard.get("followed"))


def kept(report: Report) -> bool:
    """Whether the guard kept the source's statistics, and nothing else changed."""
    return keeps_statistics(report) and not report.details.get("transform_after")


def guard_words(guard: Mapping[str, Any]) -> Iterator[str]:
    """Say what the guard chose and why, a sentence or two each; the first is the choice."""
    choice = guard["choice"]
    images = f"{guard['samples']:,} image{'' if guard['samples'] == 1 else 's'}"
    if guard["followed"]:
        verb = "keeps" if choice == "source" else "takes"
        said = f"The guard {verb} {CHOICES[choice]}"
    else:
        verb = "kept" if choice == "source" else "taken"
        said = f"The guard was not followed: it would have {verb} {CHOICES[choice]}"
    known = "with" if guard["calibrated"] else "without"
    yield f"{said} (judged on {images} without labels, {known} a calibration)."
    for ground in guard["grounds"]:
        yield ground[0].upper() + ground[1:]


def fit_words(fit: Mapping[str, Any]) -> str:
    """Say what the input fit found, apart from what the statistics do."""
    if not fit["changes"]:
        return "Input fit: no gain and offset of the images brings them nearer to the source."
    gain, offset = (", ".join(f"{v:.2f}" for v in fit[name]) for name in ("gain", "offset"))
    misfit = (
        f"the misfit of the norm layers {fit['misfit_before']:.2g} to {fit['misfit_after']:.2g}"
    )
    alone = fit.get("accuracy_alone")
    by_itself = "" if alone is None else f"; by itself it gives an accuracy of {100 * alone:.1f}%"
    return f"Input fit: gain {gain}, offset {offset}, {misfit}{by_itself}."


def domain_words(domains: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say what the domains of a target are and what the guard chose for each."""
    yield f"The target is {len(domains)} domains; each was adapted to by itself."
    for domain in domains:
        guard = domain.get("guard")
        said = "" if guard is None else f": {CHOICES[guard['choice']]}"
        if guard is not None and not guard["followed"]:
            said = f": the guard would have taken {CHOICES[guard['choice']]}"
        yield f"  {domain['name']}, {domain['images']:,} images{said}"


def mix_words(shares: Mapping[str, float]) -> str:
    """Return the largest shares of a mix of classes, in percent.

    >>> mix_words({"cat": 0.25, "dog": 0.75, "cow": 0.0})
    'dog 75%, cat 25%'
    """
    most = sorted(shares.items(), key=lambda item: -item[1])
    shown = [(name, share) for name, share in most if share >= _LEAST_SHOWN][:_SHARES_SHOWN]
    rest = 1 - sum(share for _, share in shown)
    text = ", ".join(f"{name} {share:.0%}" for name, share in shown)
    return text if rest < _LEAST_SHOWN else f"{text}, others {rest:.0%}"


def guard_table(guard: Mapping[str, Any], of: str = "images") -> pd.DataFrame:
    """Return the figures behind the guard's choice as text: what each is, and the figure.

    `of` is what the target is of, "images" or "samples".
    """
    found = [
        (told(FIGURES.get(name, name), of), "" if value is None else f"{value:.3g}")
        for name, value in guard["figures"].items()
    ]
    return pd.DataFrame(found, columns=["the guard went by", "figure"])
