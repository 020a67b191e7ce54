"""Lockstep over several processes: their moments merge at every norm layer, in one all-reduce."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptkit import norms
from adaptkit.distributed import World
from adaptkit.errors import EstimationError
from adaptkit.estimation.lockstep import Stretch
from adaptkit.moments import Moments

# Seconds between two layers, above which the processes meet before the next all-reduce: that fails
# after a fixed time, and a meeting, of a few milliseconds, waits for whoever is still at work.
_LONG = 1.0
_FAR = 100.0  # standard deviations of a mean from the center of its sums: see Moments.of_sums


@dataclass
class Merging:
    """What `lockstep` merges with.

    Every process takes part in the visit to every layer, also one without data and one in which
    something failed: so the others hear of it there, and all of them stop.

    Args:
        world: the processes.
        layers: name -> module, the same on all processes.
        order: of the visits.
        idle: whether this process has no data.
        seconds: that all processes together were at work between the last two layers.
    """

    world: World
    layers: Mapping[str, nn.Module]
    order: Sequence[str]
    idle: bool
    seconds: float = math.inf

    def __call__(self, visit: int, stretch: Stretch) -> tuple[str, Moments] | None:
        """Let this process's micro-batches run to a visit, and return the moments of all."""
        if visit >= len(self.order):
            self.world.check(self._end(stretch))
            return None
        name = self.order[visit]
        start = time.monotonic()
        here, failure = self._run(name, stretch)
        took = time.monotonic() - start
        within = norms.averages_instances(self.layers[name])
        center = _center(self.layers[name])
        if here is None:
            here = Moments.empty(len(center), device=center.device)
        if self.seconds > _LONG:
            self.world.meet()
        found = self._merged(here, center, failure, within, took)
        if bool(((found.mean - center).square() * found.weight > _FAR**2 * found.m2).any()):
            found = self._merged(here, found.mean, None, within, took)
        return name, found

    def _run(self, name: str, stretch: Stretch) -> tuple[Moments | None, Exception | None]:
        try:
            step = stretch()
            if not self.idle and (step is None or step[0] != name):
                raise EstimationError(
                    f"batches pass other norm layers than the first ones did: "
                    f"{'the end' if step is None else repr(step[0])} where those came to {name!r}"
                )
        except Exception as error:  # noqa: BLE001  whatever it is, the others have to hear of it
            return None, error
        return None if step is None else step[1], None

    def _end(self, stretch: Stretch) -> Exception | None:
        try:
            step = stretch()
        except Exception as error:  # noqa: BLE001  as above
            return error
        if step is None:
            return None
        return EstimationError(f"batches pass norm layer {step[0]!r}, which the first ones did not")

    def _merged(
        self,
        here: Moments,
        center: Tensor,
        failure: Exception | None,
        within: bool,
        seconds: float,
    ) -> Moments:
        own = center.new_tensor([float(failure is not None), seconds])
        total = self.world.sum(torch.cat([own, here.sums(center)]))
        failed, self.seconds = total[:2].tolist()
        if failed:
            self.world.check(failure)
        return Moments.of_sums(total[2:], center, within=within)


def _center(layer: nn.Module) -> Tensor:
    """Return what stands in a layer now, the same on all processes, as float64."""
    mean = norms.read(layer).mean
    mean = (mean.cpu() if mean.device.type == "mps" else mean).double()
    return mean.nan_to_num(0.0, 0.0, 0.0)
