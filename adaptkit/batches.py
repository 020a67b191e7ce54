"""What a loader yields: a tensor, a (tensor, label) pair or a dict, on the way into a model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import DataError

Forward = Callable[[nn.Module, Any], Any]

INPUT_KEYS = ("image", "images", "input", "inputs", "pixel_values", "x", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")


def inputs_of(batch: Any) -> Tensor:
    """Return the model's input in a batch: itself, its first item, or the entry with a usual name.

    Raises:
        DataError: there is none, or several entries could be it.

    >>> inputs_of((torch.zeros(2, 3), torch.tensor([0, 1]))).shape
    torch.Size([2, 3])
    >>> inputs_of({"image": torch.zeros(2, 3), "path": ["a", "b"]}).shape
    torch.Size([2, 3])
    """
    found = batch
    if isinstance(batch, Mapping):
        named = [batch[k] for k in INPUT_KEYS if isinstance(batch.get(k), Tensor)]
        tensors = [v for k, v in batch.items() if isinstance(v, Tensor) and k not in LABEL_KEYS]
        found = named[0] if named else tensors[0] if len(tensors) == 1 else None
    elif isinstance(batch, (tuple, list)) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        raise DataError(
            f"Expected batches of a tensor, a (tensor, label) pair or a dict with one of "
            f"{', '.join(INPUT_KEYS)}; got {describe(batch)}: pass forward=, a function of "
            f"model and batch"
        )
    return found


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels in a batch, or None: the second item, or the entry with a usual name.

    >>> labels_of([torch.zeros(2, 3), torch.tensor([0, 1])])
    tensor([0, 1])
    >>> labels_of(torch.zeros(2, 3)) is None
    True
    """
    if isinstance(batch, Mapping):
        found = next((batch[k] for k in LABEL_KEYS if k in batch), None)
    else:
        found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if isinstance(found, (list, tuple)) and all(isinstance(v, int) for v in found):
        found = torch.tensor(found)
    return found if isinstance(found, Tensor) else None


def call(model: nn.Module, batch: Any) -> Any:
    """Pass a batch's input through a model: what `forward=` is when none is given."""
    return model(inputs_of(batch))


class Caller:
    """Calls a model on batch after batch on one device, in the order of memory that is fastest.

    On a CPU images go in with their channels last, on which convolutions take three quarters of the
    time; a model that cannot have that, as it calls view() on its feature maps, gets them as they
    come. The results differ by rounding.

    Args:
        model: in whatever mode it is.
        device: where it is.
        forward: called as ``forward(model, batch)``; by default `call`.

    >>> Caller(nn.Flatten(), torch.device("cpu"))(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """

    def __init__(
        self, model: nn.Module, device: torch.device, forward: Forward | None = None
    ) -> None:
        self._model, self._device, self._forward = model, device, forward or call
        self._as_they_come = device.type != "cpu"

    def __call__(self, batch: Any) -> Any:
        """Return what the model gives of a batch, which is brought to the device."""
        batch = to_device(batch, self._device)
        if self._as_they_come:
            return self._forward(self._model, batch)
        try:
            return self._forward(self._model, _channels_last(batch))
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
        self._as_they_come = True
        return self._forward(self._model, batch)


def _channels_last(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        images = batch.ndim == 4 and batch.is_floating_point()
        return batch.contiguous(memory_format=torch.channels_last) if images else batch
    if isinstance(batch, Mapping):
        return {k: _channels_last(v) for k, v in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_channels_last(v) for v in batch)
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on `device`, its structure kept.

    >>> to_device({"x": [torch.zeros(1), "name"]}, torch.device("cpu"))
    {'x': [tensor([0.]), 'name']}
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(v, device) for v in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(v, device) for v in batch)
    return batch


def take(batch: Any, rows: Tensor) -> Any:
    """Return a batch with only some of its samples (a 1-D index or mask), its structure kept.

    What has another length than the batch's input stays as it is.

    >>> take({"x": torch.tensor([5, 6, 7]), "id": ["a", "b", "c"]}, torch.tensor([0, 2]))
    {'x': tensor([5, 7]), 'id': ['a', 'c']}
    """
    index = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
    return _taken(batch, index.cpu(), len(inputs_of(batch)))


def _taken(value: Any, index: Tensor, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {k: _taken(v, index, size) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_taken(v, index, size) for v in value))
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (Tensor, Mapping)) for v in value):
            return type(value)(_taken(v, index, size) for v in value)
        if len(value) == size:
            return type(value)(value[i] for i in index.tolist())
    return value


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def describe(batch: Any) -> str:
    """Name what a batch is, for an error.

    >>> describe({"a": 1, "b": torch.zeros(2)})
    "dict with keys 'a', 'b'"
    """
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        kinds = ", ".join(type(v).__name__ for v in batch)
        return f"{type(batch).__name__} of {kinds or 'nothing'}"
    return type(batch).__name__
