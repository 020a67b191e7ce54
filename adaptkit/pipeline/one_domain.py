"""One domain of many: its statistics, and what they change, with a model that is loaded once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit.data import ImageLoader
from adaptkit.estimation import DomainBank, Statistics
from adaptkit.estimation.statistics import as_fields
from adaptkit.guard import Calibration, Decision, decide, decided_statistics
from adaptkit.guard.ways import Corrected, Full
from adaptkit.paired import proportion_change
from adaptkit.pipeline import guarding
from adaptkit.pipeline.common import refuse_too_many_bad
from adaptkit.pipeline.holdout import parts
from adaptkit.pipeline.mixed import as_stored
from adaptkit.pipeline.opening import Head
from adaptkit.pipeline.scoring import Scores, of_classes, score
from adaptkit.pipeline.shift import some_readable
from adaptkit.report.many import ADAPTED, KEPT, DomainRow

_OF_DECIDING = ("prior", "memory", "layers", "precision", "seed")


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
    """

    model: nn.Module
    head: Head
    guard: str
    calibration: Calibration | None
    shares: Tensor | None
    options: Mapping[str, Any]
    holdout: float
    skip_bad: bool

    def adapt(self, name: str, loader: ImageLoader) -> tuple[DomainRow, Statistics]:
        """Return what became of a domain, and what the model is to store for it.

        Raises:
            AdaptkitError: what is wrong with its images.
        """
        with some_readable(loader):
            to_adapt, to_score = parts(loader, self.holdout, self.options["seed"])
            before = score(self.model, to_score, self.head)
            refuse_too_many_bad(to_score, self.skip_bad)
            decision, seen, applied = self._statistics(to_adapt)
        refuse_too_many_bad(loader, self.skip_bad)
        pack, after = as_stored(self.model, seen) if applied is None else applied, before
        if applied is not None:
            bank = DomainBank(self.model)
            bank.add(name, pack)
            with bank.domain(name) as adapted:
                after = score(adapted, to_score, self.head)
        row = DomainRow(
            domain=name,
            status=KEPT if applied is None else ADAPTED,
            images=len(loader.listing),
            skipped=len(loader.skipped),
            samples=seen.samples,
            choice=None if decision is None else decision.choice,
            severity=None if decision is None else _finite(decision.figures.get("severity")),
            largest_error=None if applied is None else as_fields(seen)["largest_error"],
            note=loader.listing.note,
        )
        return replace(row, **_figures(before, after)), pack

    def _statistics(
        self, images: ImageLoader
    ) -> tuple[Decision | None, Statistics, Statistics | None]:
        """Return the guard's decision, and what `decided_statistics` returns."""
        decision = None
        if self.guard != guarding.OFF:
            alike = {name: self.options[name] for name in _OF_DECIDING}
            alike["weight"] = images.weight
            decision = decide(
                self.model, images, calibration=self.calibration, shares=self.shares, **alike
            )
        followed = decision if self.guard == guarding.AUTO else None
        seen, applied = decided_statistics(
            followed or self._unasked(), self.model, images, weight=images.weight, **self.options
        )
        return decision, seen, applied

    def _unasked(self) -> Decision:
        """Take the target's statistics, corrected where its mix of classes is known."""
        if self.calibration is None or self.shares is None:
            return Decision(Full(), "full", (), {}, None, False, 0)
        shares = self.shares.numpy()
        way = Corrected(self.calibration.moments, shares)
        return Decision(way, "corrected", (), {}, shares, True, 0)


def _figures(before: Scores, after: Scores) -> dict[str, Any]:
    """Return what a row says of two evaluations of the same images."""
    if before is None or after is None:
        return {}
    found = {
        "confidence_before": _mean(before.confidence),
        "confidence_after": _mean(after.confidence),
    }
    first, second = of_classes(before), of_classes(after)
    if first is None or second is None or first.correct is None or second.correct is None:
        return found
    return {
        **found,
        "accuracy_before": first.accuracy,
        "accuracy_after": second.accuracy,
        "p_value": proportion_change(first.correct, second.correct).p_value,
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
