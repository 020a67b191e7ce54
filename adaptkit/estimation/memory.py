"""How much memory estimation may use."""

import torch

from adaptkit.errors import EstimationError
from adaptkit.free import free_memory

DEFAULT_SHARE = 0.5  # of what is free when estimation starts


def allowed(memory: int | None, device: torch.device, sharers: int = 1) -> int:
    """Return `memory` in bytes, or by default half of what is free on `device`.

    By default `sharers` processes that compute there part it among them.

    Raises:
        EstimationError: `memory` is not positive.

    >>> allowed(10, torch.device("cpu"))
    10
    """
    if memory is None:
        return int(_free(device) * DEFAULT_SHARE / sharers)
    if memory <= 0:
        raise EstimationError(f"Expected memory to be a positive number of bytes, got {memory}")
    return memory


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return free_memory()
