"""The ways to set a model's statistics that the guard chooses among."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptkit.estimation.trial import Trial
from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.class_moments import ClassMoments
from adaptkit.guard.view import View
from adaptkit.moments import Moments

Floats = NDArray[np.float64]

EARLY = 0.6  # of the norm layers, in order: they carry the domain, later ones the classes too


@dataclass(frozen=True)
class Source:
    """Keep the statistics that the model has."""

    def run(self, trial: Trial) -> View:
        """Run the model so over a trial's sample."""
        return trial.once(self, lambda: View(trial.run(trial.source)))


@dataclass(frozen=True)
class Full:
    """Take the target's statistics in every layer: plain AdaBN."""

    def run(self, trial: Trial) -> View:
        """Run the model so over a trial's sample."""
        return trial.once(self, lambda: View(trial.run()))


@dataclass(frozen=True)
class Early:
    """Take the target's statistics in the first layers alone.

    Args:
        share: of the layers, in the model's order.
    """

    share: float = EARLY

    def run(self, trial: Trial, weight: Tensor | None = None) -> View:
        """Run the model so over a trial's sample, its images weighted."""
        names = list(trial.layers)
        early = set(names[: round(self.share * len(names))])

        def settle(name: str, moments: Moments) -> tuple[Tensor, Tensor]:
            if name in early:
                return moments.mean, moments.variance()
            return trial.source(name, moments)

        def run() -> View:
            return View(trial.run(settle, weight=weight))

        return trial.once((self, None if weight is None else tuple(weight.tolist())), run)


@dataclass(frozen=True, eq=False)
class Corrected:
    """Take the target's statistics, corrected for its mix of classes (see `ClassMix`).

    Args:
        moments: of the source's classes.
        shares: shape (K,), the target's mix.
    """

    moments: ClassMoments
    shares: Floats

    def run(self, trial: Trial) -> View:
        """Run the model so over a trial's sample."""
        mix = ClassMix(self.moments, torch.from_numpy(self.shares))
        return trial.once(self, lambda: View(trial.run(mix)))


@dataclass(frozen=True)
class Balanced:
    """Take the target's statistics with every class that is predicted counting alike.

    An image weighs 1 / max(n_k, floor·N/K), with n_k how many are predicted as its class k. The
    first predictions are those with the early layers adapted, at first unweighted, then weighted;
    each round weighs by the last one's.

    Args:
        share: of the layers that are adapted, in the model's order.
        rounds: 1 or more.
        floor: keeps a class of few predictions from weighing more than so few of a balanced target.
    """

    share: float
    rounds: int
    floor: float = 0.0

    def run(self, trial: Trial) -> View:
        """Run the model so over a trial's sample."""
        last = Early().run(trial)
        last = Early().run(trial, self._weights(last))
        for _ in range(self.rounds):
            last = Early(self.share).run(trial, self._weights(last))
        return last

    def _weights(self, view: View) -> Tensor:
        n, k = view.probabilities.shape
        counts = np.bincount(view.predictions, minlength=k)
        return torch.from_numpy(1 / counts[view.predictions].clip(max(1.0, self.floor * n / k)))


Way = Source | Full | Early | Corrected | Balanced
