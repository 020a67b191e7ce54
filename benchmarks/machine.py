"""What a measurement has to say of where it was taken."""

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def device() -> torch.device:
    """Return where benchmarks compute: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def described() -> dict[str, str]:
    """Return the columns that every row carries: versions, processor, device and day."""
    return {
        "adaptkit": version("adaptkit") if _installed("adaptkit") else "source",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
    }


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")
