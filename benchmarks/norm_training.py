"""Training for the norm benchmark: full batches, micro-batches, and batches of two classes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.images import CLASSES, Images

BATCH = 64  # images of a step of the optimiser
LEARNING_RATE = 3e-3
_WARM_UP = 0.05  # of the steps


@dataclass(frozen=True)
class Condition:
    """How the images of a step reach the net: so many at a time, of all classes or of two."""

    micro: int = BATCH
    two_classes: bool = False

    def batches(self, steps: int) -> int:
        """How many (micro-)batches a net sees in training."""
        return steps * BATCH // self.micro


CONDITIONS = {
    "batch 64": Condition(),
    "micro-batch 4": Condition(micro=4),
    "micro-batch 2": Condition(micro=2),
    "two classes": Condition(two_classes=True),
}


def train(model: nn.Module, images: Images, condition: Condition, steps: int, seed: int) -> None:
    """Train by Adam, with a short rise and a half cosine of the learning rate; end in eval mode.

    The images of a step are the same for every norm and every size of micro-batches.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for index in _drawn(images.y, condition.two_classes, steps, seed):
        x = images.standardised(images.x[index].float() / 255)
        accumulate(model, x, images.y[index], condition.micro)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def accumulate(model: nn.Module, x: Tensor, y: Tensor, micro: int) -> None:
    """Add up the gradient of the mean cross-entropy of x, (N, 1, H, W), so many images at a time.

    Each micro-batch passes forward and backward by itself, as in Batch Renorm's paper, so that a
    norm over the batch sees no more of it.
    """
    for part, labels in zip(x.split(micro), y.split(micro), strict=True):
        loss = cross_entropy(model(part), labels) * (len(part) / len(x))
        loss.backward()


def _rate(step: int, steps: int) -> float:
    done = step / steps
    return min((done + 1 / steps) / _WARM_UP, 1.0) * (1 + math.cos(math.pi * done)) / 2


def _drawn(labels: Tensor, two_classes: bool, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the images of each step: an epoch's in random order, or half of each of two classes."""
    generator = torch.Generator().manual_seed(seed)
    if two_classes:
        members = [(labels == label).nonzero().flatten() for label in range(CLASSES)]
        for _ in range(steps):
            pair = torch.randperm(CLASSES, generator=generator)[:2].tolist()
            chosen = [
                members[k][torch.randint(len(members[k]), (BATCH // 2,), generator=generator)]
                for k in pair
            ]
            index = torch.cat(chosen)
            yield index[torch.randperm(BATCH, generator=generator)]
        return
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(waiting) < BATCH:
            waiting = torch.randperm(len(labels), generator=generator)
        yield waiting[:BATCH]
        waiting = waiting[BATCH:]
