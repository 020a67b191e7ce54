"""That several processes estimate the same thing: the same code, model and arguments."""

import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit import __version__, norms
from adaptkit.distributed import World
from adaptkit.estimation.statistics import Statistics


def agree(
    world: World, model: nn.Module, layers: Mapping[str, nn.Module], arguments: Mapping[str, Any]
) -> None:
    """Make sure that all processes have the same code, model and arguments.

    What the norm layers store need not be the same: training leaves each process of a job with its
    own, and the first one's are taken (`take_first`). Of other buffers those have to be the same
    that a forward reads (`agree_on_buffers`).

    Raises:
        DistributedError: they have not; it names what differs.
        ModelError: the model's parameters are dealt out over processes, and not by FSDP.
    """
    if world.size == 1:
        return
    with world.united(), norms.evaluating(model):
        facts = {
            "adaptkit": __version__,
            "torch": torch.__version__,
            **{name: repr(value) for name, value in arguments.items()},
            "layers": ", ".join(layers),
            **_checksums(dict(model.named_parameters())),
        }
    world.agree(facts, "start all with the same code, checkpoint and arguments")


def agree_on_buffers(world: World, model: nn.Module, read: Collection[str]) -> None:
    """Make sure that buffers of these names are the same, but for what norm layers store.

    Raises:
        DistributedError: they are not; it names which.
    """
    stored = {
        f"{name}.{buffer}".lstrip(".")
        for name in norms.norm_layers(model)
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }
    names = sorted(set(read) - stored)
    if names and world.size > 1:
        world.agree(
            _checksums({name: model.get_buffer(name) for name in names}),
            "the forward pass reads these buffers, so start all with the same checkpoint, or "
            "torch.distributed.broadcast them",
        )


def take_first(
    world: World,
    model: nn.Module,
    put: Callable[[nn.Module, Tensor, Tensor], None] = norms.replace,
) -> None:
    """Give a model's norm layers what they store in the first process."""
    if world.size == 1:
        return
    layers = norms.norm_layers(model)
    own = [norms.read(layer) for layer in layers.values()]
    first = world.first([(stored.mean.cpu(), stored.variance.cpu()) for stored in own])
    for layer, (mean, variance) in zip(layers.values(), first, strict=True):
        put(layer, mean, variance)


def blended(world: World, statistics: Statistics, model: nn.Module, prior: float) -> Statistics:
    """Blend statistics with what a model's norm layers store in the first process."""
    with norms.restoring(model):
        take_first(world, model)
        return statistics.blend(model, prior=prior)


def neighbours(world: World, where: torch.device) -> int:
    """Return how many of the processes compute on the same device as this one, itself included."""
    here = socket.gethostname(), str(where)
    return world.gather(here).count(here)


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return a checksum of each tensor's bytes; the same on every device."""
    found = {
        f"checksum of {name}": _checksum(tensor)
        for name, tensor in tensors.items()
        if tensor.layout is torch.strided and not tensor.is_quantized and tensor.numel()
    }
    return {name: int(value) for name, value in found.items()}


def _checksum(tensor: Tensor) -> Tensor:
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    numbers = flat.view(whole[flat.element_size()]).long()
    place = torch.arange(1, 2 * len(numbers), 2, device=numbers.device)  # odd: none is lost
    return (numbers * place).sum()  # in whole numbers, which wrap around
