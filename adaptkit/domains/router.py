"""Which domain an image is of, new ones too."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.batches import Forward
from adaptkit.domains.first_layer import STATISTICS, FirstLayer
from adaptkit.domains.tree import DomainTree
from adaptkit.errors import EstimationError


@dataclass(frozen=True)
class Router:
    """The rule by which images go to domains: what a first norm layer sees, and cuts in that.

    An image's domain is its own: it depends on no other image in the batch. An image that is of
    none of the domains goes to one all the same.

    Args:
        layer: whose input tells domains apart.
        tree: of cuts in `FirstLayer.statistics`.

    Raises:
        EstimationError: the cuts are of other statistics than the layer's.
    """

    layer: FirstLayer
    tree: DomainTree

    def __post_init__(self) -> None:
        wanted = STATISTICS * len(self.layer.mean)
        if self.tree.after and self.tree.weights.shape[1] != wanted:
            raise EstimationError(
                f"Expected cuts in {wanted} statistics of an image, got them in "
                f"{self.tree.weights.shape[1]}"
            )

    @property
    def domains(self) -> int:
        """How many domains there are."""
        return self.tree.domains

    def of_batch(self, model: nn.Module, batch: Any, forward: Forward | None = None) -> Tensor:
        """Return the number of each image's domain from 0 on, shape (N,), int64, on the CPU.

        Args:
            model: in eval mode; run as far as the layer, on its own device.
            batch: as a loader yields it, or the model's input.
            forward: called as ``forward(model, batch)``, for batches of any other form.

        Raises:
            EstimationError: the batch does not reach the layer, or not a row for each image.
        """
        with torch.no_grad():
            return self.tree.assign(self.layer.of_batch(model, batch, forward))
