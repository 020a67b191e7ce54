"""In which number format the forward passes run; the statistics are summed in float64 in any."""

import contextlib
from typing import Literal

import torch
from torch import Tensor

from adaptkit.errors import EstimationError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Below this many values a sample (a 64 x 64 RGB image), bfloat16 gains no time on any device.
_LEAST_VALUES = 3 * 64 * 64


def autocast(
    precision: str, device: torch.device, sample: Tensor | None
) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context for `precision`.

    "auto" leaves an autocast of the caller's as it is; else it takes bfloat16 where the processor
    or GPU computes in it natively and the samples are images of 64 x 64 or larger, and float32
    otherwise.

    Raises:
        EstimationError: `precision` is unknown.
    """
    if precision == "auto":
        if torch.is_autocast_enabled(device.type):
            return contextlib.nullcontext()
        large = sample is not None and sample.ndim == 4 and sample[0].numel() >= _LEAST_VALUES
        precision = "bf16" if large and _native_bfloat16(device) else "fp32"
    if precision == "fp32":
        if not torch.is_autocast_enabled(device.type):
            return contextlib.nullcontext()
        return torch.autocast(device.type, enabled=False)
    if precision not in _DTYPES:
        raise EstimationError(
            f"Expected precision to be auto, fp32, bf16 or fp16, got {precision!r}"
        )
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
