"""What a layer makes of the data: one vector a sample."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptkit import heap, norms
from adaptkit.batches import Caller, Forward, device_of, inputs_of
from adaptkit.distributed import Share, world
from adaptkit.errors import DataError


class NoFeaturesError(DataError):
    """A model has no layer that gives one vector a sample."""


POOLED = "pooled"  # the name of the default layer


def features(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layer: str | None = None,
    forward: Forward | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> NDArray[np.float32]:
    """Return a layer's output for each sample, averaged over all dimensions but the first two.

    A linear layer's features come last: there, over those between the first and the last.

    In a job of several processes each takes those of its part, and all get those of the whole.

    Args:
        model: run in eval mode on its own device, and left as it was.
        loader: any iterable of batches, as for `evaluate`.
        layer: the name of a module, as in `model.named_modules()`. By default what the last linear
            layer gets, the pooled features; without one, what the last norm layer gives.
        forward: called as ``forward(model, batch)``, for batches of any other form.
        progress: called as ``progress("features", done, None)``.

    Returns:
        Shape (N, D), float32.

    Raises:
        DataError: there is no such layer, no batch passes it or one passes it twice, its output is
            not a tensor of shape (N, D, …), or there is no data.

    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net.append(nn.Linear(3, 2))  # doctest: +ELLIPSIS
    Sequential(...)
    >>> features(net, [torch.zeros(4, 1, 5, 5)]).shape
    (4, 3)
    >>> features(net, [torch.zeros(4, 1, 5, 5)], layer="3").shape
    (4, 2)
    """
    if world().size > 1:
        model = norms.unwrap(model)  # DDP's forward is one of all processes
    where = device_of(model)
    found: list[NDArray[np.float32]] = []
    share, run = Share.of(loader, world()), Caller(model, where, forward)
    with (
        share.world.united(),
        Tap(model, layer) as tap,
        norms.evaluating(model),
        heap.kept(where),
        torch.no_grad(),
    ):
        for batch in share:
            run(batch)
            found.append(tap.take(None if forward else len(inputs_of(batch))))
            if progress:
                progress("features", sum(map(len, found)), None)
    vectors = share.merged({"features": np.concatenate(found)} if found else {})
    every: NDArray[np.float32] | None = vectors.get("features")
    if every is None or not len(every):
        raise DataError("there is no data to take features of: the loader is empty")
    return every


class Tap:
    """Takes a layer's features while somebody else runs the model; a context manager.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    >>> with Tap(net) as tap:
    ...     _ = net(torch.zeros(4, 3))
    ...     tap.take().shape
    (4, 3)
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        self._module, self._takes_input = _chosen(model, layer)
        self._name = layer or POOLED
        self._seen: list[Tensor] = []

    def __enter__(self) -> "Tap":
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._seen.append([*args, *kwargs.values()][0])

        def after(_: nn.Module, __: Any, output: Any) -> None:
            self._seen.append(output)

        self._hook = (
            self._module.register_forward_pre_hook(before, with_kwargs=True)
            if self._takes_input
            else self._module.register_forward_hook(after)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def take(self, rows: int | None = None) -> NDArray[np.float32]:
        """Return the features of the batch that passed since the last call, shape (N, D).

        Args:
            rows: how many samples the batch had, if known.

        Raises:
            DataError: none passed or more than one, the layer gives no tensor of (N, D, ...), or
                its rows are not the samples.
        """
        seen = list(self._seen)
        self._seen.clear()
        return self._checked(
            [_vectors(seen, self._name, isinstance(self._module, nn.Linear))], rows
        )

    def take_all(self, rows: int) -> NDArray[np.float32]:
        """Return the features of all batches that passed since the last call, in their order.

        Raises:
            NoFeaturesError: as `take`.
        """
        return self._checked([self._vectors([x]) for x in self._taken()], rows)

    def _taken(self) -> list[Tensor]:
        seen = list(self._seen)
        self._seen.clear()
        return seen

    def _vectors(self, seen: list[Tensor]) -> NDArray[np.float32]:
        return _vectors(seen, self._name, isinstance(self._module, nn.Linear))

    def _checked(self, parts: list[NDArray[np.float32]], rows: int | None) -> NDArray[np.float32]:
        vectors = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        if rows is not None and len(vectors) != rows:
            raise NoFeaturesError(
                f"layer {self._name!r} gives {len(vectors)} rows for {rows} samples: name another "
                f"layer"
            )
        return vectors


def _chosen(model: nn.Module, layer: str | None) -> tuple[nn.Module, bool]:
    """Return the module, and whether it is its input that counts."""
    modules = dict(model.named_modules())
    if layer is not None:
        if layer not in modules:
            raise DataError(
                f"the model has no layer {layer!r}; its last ones are {', '.join([*modules][-4:])}"
            )
        return modules[layer], False
    linear = [m for m in modules.values() if isinstance(m, nn.Linear)]
    if linear:
        return linear[-1], True
    layers = [*norms.norm_layers(model).values()]
    if layers:
        return layers[-1], False
    raise NoFeaturesError("the model has neither a linear nor a norm layer: name one with layer=")


def _vectors(seen: list[Tensor], name: str, last: bool) -> NDArray[np.float32]:
    if len(seen) != 1:
        times = "not at all" if not seen else f"{len(seen)} times"
        raise NoFeaturesError(
            f"a batch passes layer {name!r} {times}, expected once: name another layer"
        )
    x = seen[0]
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise NoFeaturesError(f"Expected layer {name!r} to give a tensor of shape (N, D, ...)")
    x = x.detach().float()
    if x.ndim > 2:
        x = x.flatten(1, -2).mean(1) if last else x.flatten(2).mean(2)
    vectors: NDArray[np.float32] = x.cpu().numpy()
    return vectors
