"""What estimation found: the moments of every norm layer, and how they get into a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from adaptkit import norms
from adaptkit.errors import EstimationError
from adaptkit.moments import Moments


@dataclass(frozen=True)
class Statistics(Mapping[str, Moments]):
    """Layer name -> `Moments` over the target sample, and where they came from.

    Args:
        moments: in the order in which the layers are passed.
        samples: how many samples they were taken from.
        available: how many the loader offered, None where it cannot be known.
        random: whether `samples` is a random subset; else it is the loader's first ones.
        limited: whether `memory` allowed fewer samples than were asked for.
        dropped: how many samples were left out because they held NaN or an infinity.
        unvisited: layers that no sample passed; they keep what they have.
    """

    moments: Mapping[str, Moments]
    samples: int
    available: int | None = None
    random: bool = True
    limited: bool = False
    dropped: int = 0
    unvisited: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Moments:
        return self.moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def apply(self, model: nn.Module) -> nn.Module:
        """Write the means and unbiased variances into a model's norm layers, and return the model.

        Either all layers are written or none. Weights, eps, momentum, `num_batches_tracked` and
        training flags stay as they are.

        Raises:
            EstimationError: a layer is missing in the model, has another number of channels, or
                its dtype cannot hold the values.
        """
        layers = norms.norm_layers(model)
        for name, moments in self.moments.items():
            if name not in layers:
                raise EstimationError(f"the model has no norm layer '{name}' with statistics")
            stored = norms.read(layers[name])
            if stored.mean.shape != moments.mean.shape:
                raise EstimationError(
                    f"norm layer '{name}' has {len(stored.mean)} channels, "
                    f"the statistics {len(moments.mean)}"
                )
            values = (moments.mean, moments.variance())
            if not all(v.to(stored.mean.dtype).isfinite().all() for v in values):
                raise EstimationError(
                    f"the statistics of norm layer '{name}' do not fit into {stored.mean.dtype}"
                )
        for name, moments in self.moments.items():
            norms.overwrite(layers[name], moments.mean, moments.variance())
        return model
