"""One domain of many: its statistics, and what they change, with a model that is loaded once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from adaptkit.data import ImageLoader
from adaptkit.errors import AdaptkitError, few
from adaptkit.estimation import DomainBank, Statistics
from adaptkit.estimation.run import DEFAULT_SAMPLES
from adaptkit.estimation.statistics import as_fields
from adaptkit.guard import Calibration, Decision, decide, decided_statistics, guarded_statistics
from adaptkit.guard.ways import Corrected, Full
from adaptkit.paired import proportion_change
from adaptkit.pipeline import guarding
from adaptkit.pipeline.common import refuse_too_many_bad
from adaptkit.pipeline.holdout import parts
from adaptkit.pipeline.mixed import as_stored
from adaptkit.pipeline.opening import Head
from adaptkit.pipeline.scoring import Scores, Seen, of_classes, of_the_same, score
from adaptkit.pipeline.shift import some_readable
from adaptkit.report.many import ADAPTED, KEPT, DomainRow

_LONGEST_REASON = 300
_OF_DECIDING = ("prior", "memory", "layers", "precision", "seed")


@dataclass(frozen=True)
class Once:
    """Statistics of all domains as one, which each is scored with beside its own.

    Args:
        statistics: of them.
        status: "adapted", or "kept" where they are the source's.
        sha256: of their pack.
    """

    statistics: Statistics
    status: str
    sha256: str


@dataclass(frozen=True)
class DomainAdapter:
    """Adapts to one domain after another as `adapt_folder` does with `stats_only`.

    Args:
        model: with its source statistics, which it has again after every domain.
        head: what the model gives.
        guard: "auto", "off" or "report".
        calibration: what is known of the model's own domain, if anything.
        shares: shape (K,), the domains' mix of classes where it is known.
        options: of `decided_statistics`.
        holdout: the share of a domain's images that are scored but not adapted to.
        skip_bad: go on even if more than a tenth of a domain's images cannot be read.
        once: what domains are scored with beside their own statistics, if anything.
    """

    model: nn.Module
    head: Head
    guard: str
    calibration: Calibration | None
    shares: Tensor | None
    options: Mapping[str, Any]
    holdout: float
    skip_bad: bool
    once: Once | None = None

    def adapt(self, name: str, loader: ImageLoader) -> tuple[DomainRow, Statistics]:
        """Return what became of a domain, and what the model is to store for it.

        Raises:
            AdaptkitError: what is wrong with its images.
        """
        with some_readable(loader):
            to_adapt, to_score = parts(loader, self.holdout, self.options["seed"])
            before = score(self.model, to_score, self.head)
            refuse_too_many_bad(to_score, self.skip_bad)
            row, pack = self._estimated(name, to_adapt)
        refuse_too_many_bad(loader, self.skip_bad)
        passes: dict[str, Callable[[], Seen]] = {
            "before": lambda: (score(self.model, to_score, self.head), None)
        }
        if row.status != KEPT:
            passes["after"] = lambda: (self._scored(pack, to_score), None)
        if (once := self.once) is not None and once.status != KEPT:
            passes["pooled"] = lambda: (self._scored(once.statistics, to_score), None)
        seen = {name: run() for name, run in passes.items() if name != "before"}
        same = {
            name: scores
            for name, (scores, _) in of_the_same({"before": (before, None), **seen}, passes).items()
        }
        refuse_too_many_bad(loader, self.skip_bad)
        before = same["before"]
        row = replace(
            row,
            images=len(loader.listing),
            skipped=len(loader.skipped),
            note=" ".join(filter(None, (row.note, _named(loader.skipped)))),
            **_figures(before, same.get("after", before)),
        )
        return self._with_once(row, same.get("pooled")), pack

    def with_once(self, row: DomainRow, loader: ImageLoader) -> DomainRow:
        """Return a domain's row with its figures of `once` anew, all else as it was.

        Raises:
            AdaptkitError: what is wrong with its images.
        """
        with some_readable(loader):
            scores = None
            if self.once is not None and self.once.status != KEPT:
                to_score = parts(loader, self.holdout, self.options["seed"])[1]
                scores = self._scored(self.once.statistics, to_score)
            return self._with_once(row, scores)

    def adapt_once(self, name: str, loader: ImageLoader) -> tuple[DomainRow, Statistics]:
        """Return what became of several domains' samples as of one, which are not scored.

        Raises:
            AdaptkitError: what is wrong with its images.
        """
        with some_readable(loader):
            row, pack = self._estimated(name, loader)
        return replace(row, skipped=len(loader.skipped)), pack

    @property
    def most(self) -> int | None:
        """How many samples statistics are taken from at most; None for all."""
        samples, tolerance = self.options["samples"], self.options["tolerance"]
        given = None if samples == "all" else samples
        return DEFAULT_SAMPLES if samples is None and tolerance is None else given

    def _estimated(self, name: str, to_adapt: ImageLoader) -> tuple[DomainRow, Statistics]:
        """Return a row without figures, and what the model is to store."""
        decision, seen, applied = self._statistics(to_adapt)
        row = DomainRow(
            domain=name,
            status=KEPT if applied is None else ADAPTED,
            samples=seen.samples,
            choice=None if decision is None else decision.choice,
            severity=None if decision is None else _finite(decision.figures.get("severity")),
            largest_error=None if applied is None else as_fields(seen)["largest_error"],
            note=to_adapt.listing.note,
        )
        return row, as_stored(self.model, seen) if applied is None else applied

    def _scored(self, statistics: Statistics, to_score: ImageLoader) -> Scores:
        bank = DomainBank(self.model)
        bank.add("domain", statistics)
        with bank.domain("domain") as adapted:
            return score(adapted, to_score, self.head)

    def _with_once(self, row: DomainRow, scores: Scores) -> DomainRow:
        """Return a row with the figures of `once`; `scores` are not needed of the source's."""
        confidence, accuracy = _confidence(scores), _accuracy(scores)
        if self.once is not None and self.once.status == KEPT:
            confidence, accuracy = row.confidence_before, row.accuracy_before
        return replace(row, confidence_pooled=confidence, accuracy_pooled=accuracy)

    def _statistics(
        self, images: ImageLoader
    ) -> tuple[Decision | None, Statistics, Statistics | None]:
        """Return the guard's decision, and what `decided_statistics` returns."""
        how = {**self.options, "weight": images.weight}
        known: dict[str, Any] = {"calibration": self.calibration, "shares": self.shares}
        if self.guard == guarding.AUTO:
            return guarded_statistics(self.model, images, **known, **how)
        decision = None
        if self.guard == guarding.REPORT:
            alike = {name: how[name] for name in _OF_DECIDING}
            decision = decide(self.model, images, **known, **alike)
        return decision, *decided_statistics(self._unasked(), self.model, images, **how)

    def _unasked(self) -> Decision:
        """Take the target's statistics, corrected where its mix of classes is known."""
        if self.calibration is None or self.shares is None:
            return Decision(Full(), "full", (), {}, None, False, 0)
        shares = self.shares.numpy()
        way = Corrected(self.calibration.moments, shares)
        return Decision(way, "corrected", (), {}, shares, True, 0)


def reason_of(error: Exception) -> str:
    """Return an error as one line; of what is none of ours, also its kind."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return text if isinstance(error, AdaptkitError) else f"{type(error).__name__} {text}".strip()


def _named(skipped: Mapping[str, str]) -> str:
    """Say which images cannot be read, and why.

    >>> _named({"a.png": "not there any more"})
    'Skipped: a.png (not there any more).'
    """
    named = [f"{name} ({reason})" for name, reason in skipped.items()]
    return f"Skipped: {few(named)}." if named else ""


def _figures(before: Scores, after: Scores) -> dict[str, Any]:
    """Return what a row says of two evaluations of the same images."""
    found = {
        "confidence_before": _confidence(before),
        "confidence_after": _confidence(after),
        "accuracy_before": _accuracy(before),
        "accuracy_after": _accuracy(after),
    }
    first, second = of_classes(before), of_classes(after)
    if first is None or second is None or first.correct is None or second.correct is None:
        return found
    return {**found, "p_value": proportion_change(first.correct, second.correct).p_value}


def _confidence(scores: Scores) -> float | None:
    """Return the mean confidence; None where there is none."""
    if scores is None:
        return None
    known = scores.confidence[np.isfinite(scores.confidence)]
    return float(known.mean()) if len(known) else None


def _accuracy(scores: Scores) -> float | None:
    """Return the accuracy of a classifier on labelled images; else None."""
    found = of_classes(scores)
    return None if found is None or found.correct is None else found.accuracy


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
