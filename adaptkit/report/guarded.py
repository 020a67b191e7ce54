"""What the guard chose and why, in words and figures."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from adaptkit.report.table import Report

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
    "distance_source": "distance of features to the classes, source's statistics",
    "distance_full": "the same, AdaBN",
    "distance_corrected": "the same, corrected for the mix of classes",
    "effective_classes_full": "classes that AdaBN's predictions spread over",
    "full_agrees_with_early": "predictions alike, all layers adapted and early ones",
    "source_agrees": "predictions alike, source and adapted",
    "starts_that_agree": "starts, of three, that come to the same mix of classes",
}
_SHARES_SHOWN = 10


def kept(report: Report) -> bool:
    """Whether the guard kept the source's statistics."""
    guard = report.details.get("guard") or {}
    return guard.get("choice") == "source" and bool(guard.get("followed"))


def guard_words(guard: Mapping[str, Any]) -> Iterator[str]:
    """Say what the guard chose and why, a sentence or two each; the first is the choice."""
    choice, images = guard["choice"], guard["samples"]
    if guard["followed"]:
        verb = "keeps" if choice == "source" else "takes"
        said = f"The guard {verb} {CHOICES[choice]}"
    else:
        verb = "kept" if choice == "source" else "taken"
        said = f"The guard was not followed: it would have {verb} {CHOICES[choice]}"
    known = "with" if guard["calibrated"] else "without"
    yield f"{said}, by {images:,} images without labels and {known} a calibration."
    for ground in guard["grounds"]:
        yield ground[0].upper() + ground[1:]


def guard_table(guard: Mapping[str, Any]) -> pd.DataFrame:
    """Return the figures behind the guard's choice as text: what each is, and the figure."""
    found = [
        (FIGURES.get(name, name), "" if value is None else f"{value:.3g}")
        for name, value in guard["figures"].items()
    ]
    shares = guard.get("class_shares") or {}
    most = sorted(shares.items(), key=lambda item: -item[1])[:_SHARES_SHOWN]
    found += [(f"share of {name}, estimated", f"{share:.0%}") for name, share in most if share]
    return pd.DataFrame(found, columns=["the guard went by", "figure"])
