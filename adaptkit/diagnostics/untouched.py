"""Run a model without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adaptkit.errors import ModelError

_SEED = 0


def check_has_weights(model: nn.Module) -> None:
    """Refuse a model with lazy layers that no batch has passed yet.

    Raises:
        ModelError: it has some.
    """
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError("a lazy layer has no weights yet: pass one batch through the model first")


def copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's buffers, for `functional_call`: what it updates are the copies.

    Copying them back afterwards would not do: a backward that is still to come may need the
    buffers at the version that its forward saw.
    """
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Give a model the flags that it has in training; afterwards those that it had.

    A model in training keeps its flags, so that layers frozen by `eval()` stay frozen; one in eval
    mode is put in training by its own `train()`, which may freeze some too.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        if not model.training:
            model.train()
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def same_randomness(where: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time, as for dropout, and leave torch's generators be."""
    cuda = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        # Not torch.manual_seed, which would also seed the devices that are not put back.
        torch.default_generator.manual_seed(_SEED)
        if cuda:
            with torch.cuda.device(where):
                torch.cuda.manual_seed(_SEED)
        yield
