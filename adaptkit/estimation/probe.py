"""One small forward before the real one: which norm layers are passed, and what stays in memory."""

import contextlib
import weakref
from collections.abc import Callable, Mapping
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
        owned: the layers whose input nothing else reads, before or after: it may be overwritten.
        read: the model's buffers that the forward reads.
    """

    visits: tuple[str, ...]
    waiting: int
    running: int
    owned: frozenset[str]
    read: frozenset[str]


def probe(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Any,
    forward: Callable[[nn.Module, Any], Any],
) -> Probe:
    """Run `batch` through a model in eval mode, with the statistics that it has, and watch."""
    visits: list[str] = []
    waiting = [0]
    live = _LiveBytes(model)

    def before(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        visits.append(name)
        waiting.append(live.now)
        live.enter(name, (args, kwargs))

    def after(*_: Any) -> None:
        live.leave()

    with contextlib.ExitStack() as undo:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(partial(before, name), with_kwargs=True)
            undo.callback(hook.remove)
            undo.callback(layer.register_forward_hook(after).remove)
        with torch.no_grad(), live:
            forward(model, batch)
    once = {name for name in visits if visits.count(name) == 1}
    return Probe(
        tuple(visits), max(waiting), live.peak, frozenset(once - live.shared), frozenset(live.read)
    )


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operations made and that are still alive.

    Works alike on every device: it looks at storages, not at an allocator. What is made of a
    model's tensors alone, as weights that autocast converts, does not count: there is one for all
    samples. Also notes the norm layers whose input is `shared`: read by an operation outside of the
    layer after it came there, or not made by an operation in this forward; and the model's buffers
    that any operation has `read`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        fixed = _storages([*model.parameters(), *model.buffers()])
        self._fixed = WeakIdKeyDictionary(dict.fromkeys(fixed, True))
        self._buffers = WeakIdKeyDictionary(
            {storage: name for name, b in model.named_buffers() for storage in _storages(b)}
        )
        self.read: set[str] = set()
        self.now = self.peak = 0
        self.shared: set[str] = set()
        self._known = WeakIdKeyDictionary()  # storage -> whether it was made in this forward
        self._inputs = WeakIdKeyDictionary()  # storage -> the norm layer that it came to
        self._inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.setdefault(storage, False)
            if storage in self._buffers:
                self.read.add(self._buffers[storage])
            if not self._inside and storage in self._inputs:
                self.shared.add(self._inputs[storage])
        fixed = [storage in self._fixed for storage in _storages((args, kwargs))]
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            if fixed and all(fixed):
                self._fixed[storage] = True
            elif storage not in self._known:
                self._known[storage] = True
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)
        return output

    def enter(self, layer: str, inputs: Any) -> None:
        """Note that a norm layer's forward begins, with these inputs."""
        self._inside = True
        for storage in _storages(inputs):
            if storage in self._inputs or not self._known.get(storage, False):
                self.shared |= {layer, self._inputs.get(storage, layer)}
            self._inputs[storage] = layer

    def leave(self) -> None:
        """Note that the norm layer's forward has ended."""
        self._inside = False

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
