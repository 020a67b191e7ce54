"""One small forward before the real one: which norm layers are passed, and what stays in memory."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Probe:
    """What one forward of a few samples showed.

    Args:
        visits: the norm layers in the order in which they were passed.
        waiting: bytes alive at the norm layer where most are: what a suspended forward holds.
        running: bytes alive at the worst moment of all.
    """

    visits: tuple[str, ...]
    waiting: int
    running: int


def probe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Any,
    forward: Callable[[nn.Module, Any], Any],
) -> Probe:
    """Run `batch` through a model in eval mode, with the statistics that it has, and watch."""
    visits: list[str] = []
    waiting = [0]
    live = _LiveBytes()

    def note(name: str, *_: Any) -> None:
        visits.append(name)
        waiting.append(live.now)

    with _hooked(layers, note), torch.no_grad(), live:
        forward(model, batch)
    return Probe(tuple(visits), max(waiting), live.peak)


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], note: Callable[..., None]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operations made and that are still alive.

    Works alike on every device: it looks at storages, not at an allocator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):  # there before, or counted when it was made
            self._known.setdefault(storage, True)
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            if storage not in self._known:
                self._known[storage] = True
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)
        return output

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
