"""What a model with one set of statistics makes of a target, as far as it shows without labels."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptkit.errors import DataError
from adaptkit.estimation.trial import Seen
from adaptkit.evaluation import logits_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """One run of a trial, and what the model predicts in it.

    Args:
        seen: of the run.
    """

    seen: Seen

    @cached_property
    def probabilities(self) -> Floats:
        """Shape (N, K).

        Raises:
            DataError: the model's outputs are not logits.
        """
        outputs = self.seen.outputs
        logits = torch.cat([logits_of(output).detach().cpu().double() for output in outputs])
        return logits.softmax(1).numpy()

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """Shape (N,), the classes predicted."""
        return np.asarray(self.probabilities.argmax(1))

    @cached_property
    def shares(self) -> Floats:
        """Shape (K,), how often each class is predicted."""
        counts = np.bincount(self.predictions, minlength=self.probabilities.shape[1])
        return counts / len(self.predictions)

    @property
    def effective(self) -> float:
        """How many classes the predictions are spread over."""
        return effective(self.shares)

    def agreement(self, other: "View") -> float:
        """Return the share of samples of which two views predict the same class."""
        return float((self.predictions == other.predictions).mean())


def effective(shares: Floats) -> float:
    """Return how many classes a mix is spread over, exp(−Σ q·log q).

    >>> effective(np.array([0.5, 0.5, 0])), effective(np.array([0.0, 1]))
    (2.0, 1.0)
    """
    present = shares[shares > 0]
    return float(np.exp(-(present * np.log(present)).sum()))


def logits_alone(output: Any) -> Any:
    """Return what a view needs of a model's output, None where that is not logits of classes.

    >>> logits_alone({"logits": torch.zeros(2, 3), "more": torch.zeros(2, 3, 99, 99)}).shape
    torch.Size([2, 3])
    """
    try:
        return logits_of(output)
    except DataError:
        return None
