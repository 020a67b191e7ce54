"""Whether a program's graph holds together, for any number of images and in bounded memory."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from adaptkit.errors import CheckpointError, shown
from adaptkit.program.steps import Graph

_MOST_BYTES = 4 * 2**30  # at once, for each image
_TOLERANCE = 1e-3  # of the largest output: kernels differ with the number of rows


def check(model: nn.Module, hollow: nn.Module, graph: Graph) -> None:
    """Run a program's graph without values or memory, to see whether it holds together.

    One that was exported for a fixed number of images also runs on noise, to see whether it gives
    the same for an image whatever the number of others beside it.

    Args:
        model: of the program.
        hollow: the same on the device "meta".
        graph: of both.

    Raises:
        CheckpointError: it does not, or takes more memory than any model's, or works for one
            number of images only.
    """
    rows, *size = graph.example
    before = _outputs(hollow, rows, size)
    if graph.shape[0] is None:
        return
    why = CheckpointError(
        f"works for batches of {rows} only, as it was exported: from its source, export it with "
        f"program = torch.export.export(model.eval(), (x,), dynamic_shapes=("
        f"{{0: torch.export.Dim.AUTO}},)), where x is a batch of two or more"
    )
    try:
        after = _outputs(hollow, rows + 1, size)
        same = _gives_the_same(model, size)
    except CheckpointError:
        raise why from None
    wanted = [(rows + 1, *shape[1:]) if shape[:1] == (rows,) else shape for shape in before]
    if not same or after != wanted or after == before:
        raise why


def _outputs(hollow: nn.Module, rows: int, size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of what it gives for so many images."""
    images = torch.empty(rows, *size, device="meta")
    try:
        with torch.no_grad(), _Bounded(rows * _MOST_BYTES):
            given = hollow(images)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  operations raise anything
        raise CheckpointError(f"is broken: its steps do not fit together: {_line(error)}") from None
    return [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _gives_the_same(model: nn.Module, size: Sequence[int]) -> bool:
    """Whether two images get the same outputs with and without a third beside them."""
    images = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            alone, beside = (tree_leaves(model(images[:n].clone())) for n in (2, 3))
    except Exception as error:  # noqa: BLE001  operations raise anything
        raise CheckpointError(f"cannot be run: {_line(error)}") from None
    for few, more in zip(alone, beside, strict=True):
        if not isinstance(few, Tensor) or few.shape[:1] != (2,) or not few.is_floating_point():
            continue
        scale = few.nan_to_num().abs().max().item()
        if not torch.allclose(
            few, more[:2], rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True
        ):
            return False
    return True


class _Bounded(TorchDispatchMode):
    """Refuse to have more bytes at once in what operations make; as `probe` counts them."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most
        self._now = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage not in self._known:
                self._known[storage] = True
                self._now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
                if self._now > self._most:
                    raise CheckpointError(
                        f"takes more than {_MOST_BYTES // 2**30} GiB of memory for an image"
                    )
        return output

    def _freed(self, size: int) -> None:
        self._now -= size


def _line(error: Exception) -> str:
    return shown(str(error).strip().split("\n")[0] or type(error).__name__)
